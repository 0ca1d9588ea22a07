"""Order, losses, optimiser and steps of training, without Ray."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from effnet_batch.config import OptimisationSettings
from effnet_batch.errors import JobError
from effnet_batch.evaluation.metrics import Detections
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import StochasticDepth
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import SequenceConfig
from effnet_batch.training.losses import clip_losses
from effnet_batch.training.optimiser import AveragedModel, learning_rate, parameter_groups
from effnet_batch.training.plan import epoch_plan, share_of
from effnet_batch.training.trainer import Batch, Trainer, class_weights
from effnet_batch.training.videos import ClipTrainer

SIDE = 32
PREPROCESSING = Preprocessing(image_size=SIDE, resize_size=SIDE)
TINY = SequenceConfig(architecture="mobilenet_v2", lstm_layers=1, lstm_dim=32)


@settings(deadline=None)
@given(
    st.integers(1, 200), st.integers(4, 24), st.integers(1, 4), st.integers(0, 5), st.integers(0, 5)
)
def test_an_epoch_has_every_clip_once_in_whole_steps(
    num_samples: int, size: int, num_workers: int, seed: int, epoch: int
) -> None:
    plan = epoch_plan(num_samples, size, seed=seed, epoch=epoch)
    assert sorted(step.sample for step in plan if step.counts) == list(range(num_samples))
    assert len(plan) % size == 0
    assert plan == epoch_plan(num_samples, size, seed=seed, epoch=epoch)
    # Step k of one worker is what several workers do together in their step k.
    shares = [share_of(plan, size, rank, num_workers) for rank in range(num_workers)]
    for number, parts in enumerate(zip(*shares, strict=True)):
        together = [step for part in parts for step in part]
        whole = plan[number * size : (number + 1) * size]
        assert sorted(together, key=repr) == sorted(whole, key=repr)
        # Nobody has none, and a worker's batches are all as large.
        assert [len(part) for part in parts] == [len(share[0]) for share in shares]
        assert min(map(len, parts)) == size // num_workers


def test_epochs_differ_in_order() -> None:
    orders = {
        tuple(step.sample for step in epoch_plan(20, 4, seed=seed, epoch=epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_losses_are_what_they_say() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.3, 99.0]])
    lengths, labels = [3, 2], torch.tensor([1, 0])

    def bce(logit: float, target: float) -> float:
        return float(
            binary_cross_entropy_with_logits(
                torch.tensor(float(logit)), torch.tensor(float(target))
            )
        )

    expected = {
        "all_steps": [bce(0.5, 1) + bce(-1, 1) + bce(2, 1), bce(1.5, 0) + bce(0.3, 0)],
        "last_step": [bce(2, 1), bce(0.3, 0)],
        "mean": [bce(0.5, 1), bce(0.9, 0)],
        "frames": [(bce(0.5, 1) + bce(-1, 1) + bce(2, 1)) / 3, (bce(1.5, 0) + bce(0.3, 0)) / 2],
    }
    for loss, values in expected.items():
        assert clip_losses(logits, lengths, labels, loss=loss).tolist() == pytest.approx(values)
    smoothed = clip_losses(logits, lengths, labels, loss="last_step", label_smoothing=0.2)
    assert smoothed.tolist() == pytest.approx([bce(2, 0.9), bce(0.3, 0.1)])
    with pytest.raises(ValueError, match="all_steps, last_step"):
        clip_losses(logits, lengths, labels, loss="first")


def test_the_learning_rate_rises_and_falls() -> None:
    settings = OptimisationSettings(learning_rate=1.0, min_learning_rate=0.1)
    rates = [learning_rate(step, 105, 5, settings) for step in range(105)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[55] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_every_parameter_learns_at_its_depths_rate() -> None:
    model = SequenceClassifier(dataclasses.replace(TINY, bottleneck_dim=8))
    settings = OptimisationSettings(layer_decay=0.5)
    groups = parameter_groups(model, settings)
    scale_of = {id(p): group["scale"] for group in groups for p in group["params"]}
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(scale_of) == sum(len(group["params"]) for group in groups)
    assert set(scale_of) == {id(parameter) for parameter in model.parameters()}
    for name, parameter in model.named_parameters():
        assert decay_of[id(parameter)] == (1e-4 if parameter.ndim > 1 else 0.0), name
        if not name.startswith("encoder.backbone."):
            assert scale_of[id(parameter)] == 1.0, name
    scales = [scale_of[id(parameter)] for parameter in model.encoder.backbone.parameters()]
    assert scales == sorted(scales)
    assert scales[-1] == 0.5
    assert scales[0] < 0.1
    frozen = parameter_groups(model, dataclasses.replace(settings, freeze_backbone=True))
    assert {group["scale"] for group in frozen} == {1.0}
    assert not any(p.requires_grad for p in model.encoder.backbone.parameters())
    assert all(p.requires_grad for p in model.encoder.bottleneck.parameters())


def test_gradients_are_clipped() -> None:
    norms = []
    for longest in (1e6, 0.01):
        trainer = make_trainer(TINY, clip_norm=longest)
        losses_of(trainer, some_batches(1))
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(float(torch.stack([each.norm() for each in gradients]).norm()))
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_bf16_is_about_the_same() -> None:
    exact, rough = (
        losses_of(make_trainer(TINY, mixed_precision=kind), some_batches(3))
        for kind in ("fp32", "bf16")
    )
    assert rough == pytest.approx(exact, abs=0.05)
    assert rough[0] != exact[0]


def test_the_average_follows_the_model() -> None:
    model = torch.nn.Linear(1, 1)
    averaged = AveragedModel(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(1.0)
        averaged.model.get_parameter("weight").fill_(0.0)
    averaged.update(model)
    # The first update has a decay of 2 / 11 only.
    assert averaged.model.get_parameter("weight").item() == pytest.approx(9 / 11)
    again = AveragedModel(model, 0.9)
    again.load_state_dict(averaged.state_dict())
    for each in (averaged, again):
        each.update(model)
    assert again.model.get_parameter("weight").item() == pytest.approx(
        averaged.model.get_parameter("weight").item()
    )


def test_class_weights() -> None:
    assert class_weights([1, 0, 0, 0], balance=True) == {1: 2.0, 0: 2 / 3}
    assert class_weights([1, 0, 0, 0], balance=False) == {1: 1.0, 0: 1.0}
    assert class_weights([0, 0], balance=True) == {0: 1.0}


def moving_square(generator: np.random.Generator, *, is_fake: bool, num_frames: int = 6) -> Any:
    """Returns uint8 [T, S, S, 3] of a square that goes right, or left in a fake.

    Every frame by itself is as likely in a real as in a fake.
    """
    top = generator.integers(6, SIDE - 10)
    places = np.linspace(2, SIDE - 10, num_frames).astype(int)
    frames = np.repeat(generator.integers(60, 120, (1, SIDE, SIDE, 3)), num_frames, axis=0)
    frames += generator.integers(-5, 6, frames.shape)
    for frame, left in zip(frames, places[::-1] if is_fake else places, strict=True):
        frame[top : top + 8, left : left + 8] = 230
    return frames.astype(np.uint8)


def make_trainer(config: SequenceConfig, num_steps: int = 4, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    return ClipTrainer(
        SequenceClassifier(config),
        PREPROCESSING,
        OptimisationSettings(**{"epochs": 1, "learning_rate": 1e-3, **settings}),
        steps_per_epoch=num_steps,
        device="cpu",
        num_workers=1,
    )


def some_batches(num_batches: int, size: int = 4, seed: int = 0) -> list[Batch]:
    generator = np.random.default_rng(seed)
    return [
        Batch(
            clips=[
                moving_square(generator, is_fake=bool(n % 2), num_frames=3 + n % 3)
                for n in range(size)
            ],
            labels=[n % 2 for n in range(size)],
            weights=[1.0] * size,
        )
        for _ in range(num_batches)
    ]


def losses_of(trainer: Trainer, batches: list[Batch]) -> list[float]:
    trainer.start_epoch(0)
    return [trainer.train_step(batch, sum(batch.weights)) for batch in batches]


def test_small_batches_add_up_to_the_whole() -> None:
    whole = losses_of(make_trainer(TINY), some_batches(3))
    parts = losses_of(make_trainer(TINY, micro_batch=3), some_batches(3))
    assert parts == pytest.approx(whole, abs=1e-5)
    assert whole[0] != pytest.approx(whole[2], abs=1e-3)  # it learns something


def test_a_filler_counts_nothing() -> None:
    plain, filled = some_batches(2), some_batches(2)
    for batch in filled:
        batch.clips.append(batch.clips[0])
        batch.labels.append(1)
        batch.weights.append(0.0)
    assert losses_of(make_trainer(TINY), filled) == pytest.approx(
        losses_of(make_trainer(TINY), plain), abs=1e-5
    )


def test_a_saved_state_goes_on_exactly() -> None:
    batches = some_batches(4)
    straight = make_trainer(TINY, ema=0.9)
    expected = losses_of(straight, batches)
    first = make_trainer(TINY, ema=0.9)
    losses_of(first, batches[:2])
    first.epoch = 1
    second = make_trainer(TINY, ema=0.9)
    second.load(first.save())
    assert second.epoch == 1
    assert losses_of(second, batches[2:]) == pytest.approx(expected[2:], abs=1e-6)
    for mine, theirs in zip(second.judged.parameters(), straight.judged.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_states_that_do_not_fit(tmp_path: Path) -> None:
    trainer = make_trainer(TINY)
    data = trainer.save()
    other = make_trainer(dataclasses.replace(TINY, lstm_dim=16))
    for wrong in (data[: len(data) // 2], b"", b"PK"):
        with pytest.raises(JobError, match="does not fit"):
            trainer.load(wrong)
    with pytest.raises(JobError, match="does not fit"):
        other.load(data)
    # A pickle that would run code is refused by the unpickler.
    file = io.BytesIO()
    torch.save({"epoch": Path(tmp_path)}, file)
    with pytest.raises(JobError, match="does not fit"):
        trainer.load(file.getvalue())


def test_a_loss_that_is_no_number_ends_training() -> None:
    trainer = make_trainer(TINY)
    with torch.no_grad():
        trainer.model.head[-1].get_parameter("bias").fill_(float("nan"))
    with pytest.raises(JobError, match=r"the loss became nan .* lower --learning-rate"):
        losses_of(trainer, some_batches(1))


def test_frozen_parts_stay() -> None:
    trainer = make_trainer(TINY, freeze_backbone=True)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    losses_of(trainer, some_batches(2))
    changed = {
        key
        for key, value in trainer.model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert changed
    assert not any(key.startswith("encoder.") for key in changed)
    moving = make_trainer(TINY, freeze_batchnorm=False)
    frozen = make_trainer(TINY)
    for trainer, is_moving in ((moving, True), (frozen, False)):
        key = "encoder.backbone.features_bn.running_mean"
        key = next(k for k in trainer.model.state_dict() if k.endswith("running_mean"))
        start = trainer.model.state_dict()[key].clone()
        losses_of(trainer, some_batches(1))
        assert torch.equal(trainer.model.state_dict()[key], start) is not is_moving


def test_blocks_are_left_out_only_when_asked_for() -> None:
    lite = SequenceConfig(architecture="efficientnet_lite0")
    for is_on in (False, True):
        trainer = make_trainer(lite, stochastic_depth=is_on)
        trainer.start_epoch(0)
        depths = [m for m in trainer.model.modules() if isinstance(m, StochasticDepth)]
        assert {module.training for module in depths} == {is_on}


@pytest.mark.slow
def test_the_sequence_is_what_is_learnt() -> None:
    generator = np.random.default_rng(0)
    labels = [number % 2 for number in range(128)]
    clips = [moving_square(generator, is_fake=bool(label)) for label in labels]
    held_out = [number % 2 for number in range(60)]
    others = np.stack([moving_square(generator, is_fake=bool(label)) for label in held_out])
    found = {}
    for name, config, loss in (
        ("sequence", TINY, "last_step"),
        ("frames", SequenceConfig(architecture="mobilenet_v2"), "frames"),
    ):
        trainer = make_trainer(
            config, num_steps=8, epochs=9, loss=loss, freeze_batchnorm=False, clips_per_step=16
        )
        for epoch in range(9):
            trainer.start_epoch(0)
            plan = epoch_plan(len(clips), 16, seed=0, epoch=epoch)
            for start in range(0, len(plan), 16):
                chosen = [step.sample for step in plan[start : start + 16]]
                batch = Batch([clips[n] for n in chosen], [labels[n] for n in chosen], [1.0] * 16)
                trainer.train_step(batch, 16)
            trainer.epoch += 1
        model = trainer.model.eval()
        with torch.inference_mode():
            frames = torch.from_numpy(others).permute(0, 1, 4, 2, 3).float() / 255
            mean, std = (
                torch.tensor(x)[:, None, None] for x in (PREPROCESSING.mean, PREPROCESSING.std)
            )
            logits = model((frames - mean) / std, [6] * len(others))
        judged = logits[:, -1] if name == "sequence" else logits.mean(dim=1)
        found[name] = Detections(held_out, torch.sigmoid(judged).numpy()).measure()["auc"]
    assert found["sequence"] is not None
    assert found["frames"] is not None
    assert found["sequence"] >= 0.95
    assert found["frames"] < 0.7


@pytest.mark.parametrize("ema", [None, 0.5])
def test_workers_judge_by_the_mean_of_their_statistics(
    ema: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def statistics(trainer: Trainer) -> list[torch.Tensor]:
        models = (trainer.model, trainer.judged) if ema else (trainer.model,)
        return [
            buffer.clone()
            for model in models
            for name, buffer in model.named_buffers()
            if name.endswith(("running_mean", "running_var"))
        ]

    trainers = [make_trainer(TINY, freeze_batchnorm=False, ema=ema) for _ in range(3)]
    for seed, trainer in enumerate(trainers):
        losses_of(trainer, some_batches(1, seed=seed))
    found = [statistics(trainer) for trainer in trainers]
    others = [sum(each) for each in zip(*found[1:], strict=True)]
    # Stands for the process group of the three: adds what the other two have.
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda mine: mine.add_(others.pop(0)))
    trainers[0]._num_workers = 3
    trainers[0].share_statistics()
    assert not others
    for mine, *theirs in zip(statistics(trainers[0]), *found, strict=True):
        assert torch.allclose(mine, sum(theirs) / 3)
        assert not torch.equal(mine, theirs[0])

    frozen = make_trainer(TINY, ema=ema)
    frozen.start_epoch(0)
    frozen._num_workers = 3
    frozen.share_statistics()  # would take from an empty list
