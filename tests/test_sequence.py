"""The sequence model: sizes, padding that changes nothing, engines, training."""

import dataclasses
import json

import numpy as np
import plain_forward as plain
import pytest
import torch
from seeded_weights import seeded_images
from torch.nn import functional

from effnet_batch.errors import WeightsError
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.architectures import build_model
from effnet_batch.models.engine import build_engine
from effnet_batch.models.sequence import CLIPS_PER_CALL, SequenceClassifier
from effnet_batch.models.sequence_config import (
    CONFIGURATIONS,
    RESNET50_LSTM,
    THESIS_EFFICIENTNET_B1_LSTM,
    THESIS_RESNET50_LSTM,
    SequenceConfig,
)

SMALL = SequenceConfig(
    architecture="efficientnet_lite0", bottleneck_dim=16, lstm_layers=2, lstm_dim=24, head_dims=(8,)
)


def classifier(config: SequenceConfig, seed: int = 0) -> SequenceClassifier:
    torch.manual_seed(seed)
    return SequenceClassifier(config).eval()


def clips_of(lengths: list[int], width: int) -> list[np.ndarray]:
    random = np.random.default_rng(7)
    return [random.normal(size=(n, width)).astype(np.float32) for n in lengths]


@pytest.mark.parametrize(
    ("config", "backbone", "behind"),
    [
        (THESIS_EFFICIENTNET_B1_LSTM, 6_513_184, 3_613_057),
        (THESIS_RESNET50_LSTM, 23_508_032, 1_610_113),
        # 4 gates of (2048 + 512) weights and 2 biases per unit; 512 weights and a bias.
        (RESNET50_LSTM, 23_508_032, 4 * 512 * (2048 + 512 + 2) + 513),
        (CONFIGURATIONS["efficientnet_b4"], 17_548_616, 1793),
    ],
    ids=lambda value: getattr(value, "architecture", None),
)
def test_parameters_are_the_published(config: SequenceConfig, backbone: int, behind: int) -> None:
    with torch.device("meta"):
        model = SequenceClassifier(config)
    in_backbone = sum(p.numel() for p in model.encoder.backbone.parameters())
    assert (in_backbone, sum(p.numel() for p in model.parameters())) == (
        backbone,
        backbone + behind,
    )


@pytest.mark.parametrize("is_bidirectional", [False, True])
def test_padding_changes_no_score(is_bidirectional: bool) -> None:
    config = dataclasses.replace(SMALL, is_bidirectional=is_bidirectional)
    model = classifier(config)
    clips = clips_of([1, 20, 3, 20, 7], 16)
    together = model.classify_clips(clips)
    assert [len(row) for row in together] == [1, 20, 3, 20, 7]
    # Whatever stands beyond a clip's end, even what is no number.
    padded = torch.full((5, 33, 16), float("nan"))
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    with torch.inference_mode():
        longer = model.classify(padded, [len(clip) for clip in clips])
    for index, clip in enumerate(clips):
        (alone,) = model.classify_clips([clip])
        assert len(set(alone.tolist())) == len(clip)
        np.testing.assert_allclose(together[index], alone, rtol=0, atol=1e-6)
        np.testing.assert_allclose(longer[index, : len(clip)].numpy(), alone, rtol=0, atol=1e-6)
        assert (longer[index, len(clip) :] == 0).all()


def test_the_lstm_reads_forward_and_the_head_follows() -> None:
    model = classifier(SMALL)
    (clip,) = clips_of([6], 16)
    (logits,) = model.classify_clips([clip])
    state = {key: value.detach() for key, value in model.state_dict().items()}
    hidden = plain.lstm(torch.from_numpy(clip), state, "lstm", 2)
    out = functional.linear(hidden, state["head.0.weight"], state["head.0.bias"]).relu()
    expected = functional.linear(out, state["head.3.weight"], state["head.3.bias"]).squeeze(1)
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-6)
    # The first steps do not know what follows.
    (start,) = model.classify_clips([clip[:2]])
    np.testing.assert_allclose(logits[:2], start, rtol=0, atol=1e-6)


def test_more_clips_than_one_call_takes() -> None:
    model = classifier(SMALL)
    clips = clips_of([1 + n % 5 for n in range(CLIPS_PER_CALL + 3)], 16)
    scored = model.classify_clips(clips)
    assert len(scored) == len(clips)
    np.testing.assert_allclose(scored[-1], model.classify_clips(clips[-1:])[0], atol=1e-6)
    assert model.classify_clips([]) == []


def test_a_frame_classifier_judges_every_frame_by_itself() -> None:
    model = classifier(SequenceConfig(architecture="efficientnet_lite0"))
    (clip,) = clips_of([4], 1280)
    (logits,) = model.classify_clips([clip])
    (reversed_logits,) = model.classify_clips([clip[::-1].copy()])
    np.testing.assert_allclose(logits[::-1], reversed_logits, rtol=0, atol=1e-6)


def test_wrong_clips_are_refused() -> None:
    model = classifier(SMALL)
    with pytest.raises(ValueError, match=r"clips must be \[1 or more, 16\], got \[3, 5\]"):
        model.classify_clips(clips_of([3], 5))
    with pytest.raises(ValueError, match=r"clips must be \[1 or more, 16\], got \[0, 16\]"):
        model.classify_clips(clips_of([2, 0], 16))
    for lengths in ([0, 3], [1, 4]):
        with pytest.raises(ValueError, match="lengths must be 1 to 3"):
            model.classify(torch.zeros(2, 3, 16), lengths)
    with pytest.raises(ValueError, match=r"must be \[1, T, 16\] for 1 clips, got \[2, 3, 16\]"):
        model.classify(torch.zeros(2, 3, 16), [3])


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_engines_run_the_encoder(engine: str) -> None:
    """An attention block, an unpadded stem and a bottleneck, folded and compiled, as torch runs."""
    config = dataclasses.replace(
        SMALL,
        architecture="efficientnet_b0",
        padding="same",
        is_stem_padded=False,
        attention_block=4,
    )
    model = classifier(config)
    preprocessing = Preprocessing(image_size=64, resize_size=64, mean=(0, 0, 0), std=(1, 1, 1))
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    runner = build_engine(
        model.encoder, preprocessing, engine=engine, device="cpu", precision="fp32", batch_size=4
    )
    output = runner.run(frames)
    with torch.inference_mode():
        expected = model.encode(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255).numpy()
    assert output.logits is None
    assert output.embeddings.shape == (3, 16)
    np.testing.assert_allclose(output.embeddings, expected, rtol=0, atol=1e-4 * expected.std())


def test_training_leaves_padding_out() -> None:
    """The statistics of a batch and the gradients see real frames only."""
    config = dataclasses.replace(SMALL, lstm_layers=1)
    frames = seeded_images(6, 32).reshape(2, 3, 3, 32, 32)
    gradients = []
    for padding in (0.0, 100.0):
        model = classifier(config).train()
        model.encoder.backbone.requires_grad_(requires_grad=False)
        frames[1, 1:] = padding
        # Without stochastic depth and dropout, so that two passes can be compared.
        for module in model.modules():
            if type(module).__name__ in ("StochasticDepth", "Dropout"):
                module.eval()
        logits = model(frames, [3, 1])
        assert logits.shape == (2, 3)
        assert logits[1, 1:].tolist() == [0, 0]
        logits.sum().backward()
        gradients.append(model.encoder.bottleneck.conv.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_take_backbone() -> None:
    model = classifier(SMALL)
    trained = build_model("efficientnet_lite0")
    before = model.encoder_sha256()
    model.take_backbone(trained)
    assert model.encoder_sha256() != before
    for key, value in model.encoder.backbone.state_dict().items():
        assert torch.equal(value, trained.state_dict()[key])
    with pytest.raises(ValueError, match="no efficientnet_lite0"):
        model.take_backbone(build_model("efficientnet_lite1"))


def test_the_encoders_digest_is_that_of_its_embeddings() -> None:
    model = classifier(SMALL)
    digest = model.encoder_sha256()
    assert classifier(SMALL).encoder_sha256() == digest
    with torch.no_grad():
        model.head[-1].bias.add_(1)
    assert model.encoder_sha256() == digest
    with torch.no_grad():
        model.encoder.bottleneck.bn.running_mean[3] += 1e-6
    assert model.encoder_sha256() != digest
    assert classifier(dataclasses.replace(SMALL, bn_eps=1e-3)).encoder_sha256() != digest


@pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_configurations_survive_json(config: SequenceConfig) -> None:
    assert SequenceConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architecture": "vgg16"}, "architecture must be one of"),
        ({"padding": "valid"}, "padding must be one of"),
        ({"lstm_layer": 2}, "unknown field 'lstm_layer'; did you mean lstm_layers"),
        ({"lstm_layers": 10**9}, "at most 8 layers"),
        ({"lstm_layers": True}, "lstm_layers is bool True, expected int"),
        ({"lstm_layers": 1.5}, "lstm_layers is float 1.5, expected int"),
        ({"lstm_dim": 10**9}, "1 to 8192 channels"),
        ({"bottleneck_dim": 0}, "1 to 8192 channels"),
        ({"head_dims": [64, "x"]}, r"head_dims\[1\] is str 'x', expected int"),
        ({"head_dims": 64}, "head_dims is int, expected a list"),
        ({"bn_eps": 0}, "bn_eps must be positive"),
        ({"bn_eps": float("nan")}, "bn_eps is float nan, expected a finite number"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"is_bidirectional": 1}, "is_bidirectional is int 1, expected bool"),
        ({"architecture": "resnet50", "attention_block": 3}, "only an EfficientNet"),
        ({"architecture": None}, "architecture is NoneType None, expected str"),
    ],
)
def test_a_strangers_values_are_checked(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(WeightsError, match=complaint):
        SequenceConfig.from_dict({**SMALL.to_dict(), "head_dims": [8], **changes})


def test_a_configuration_must_be_an_object_with_a_backbone() -> None:
    with pytest.raises(WeightsError, match="sequence is list, expected an object"):
        SequenceConfig.from_dict([])
    with pytest.raises(WeightsError, match="sequence lacks architecture"):
        SequenceConfig.from_dict({})


def test_an_attention_block_must_exist() -> None:
    with pytest.raises(ValueError, match="attention_block of efficientnet_b0 must be 0 to 15"):
        SequenceClassifier(SequenceConfig(architecture="efficientnet_b0", attention_block=16))
