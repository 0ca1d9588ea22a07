"""Training a head alone: which stored frame embeddings are those of the backbone that is given."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

from effnet_batch.config import AugmentationSettings, FinetuneConfig, InputSettings
from effnet_batch.errors import ConfigError, FingerprintError, InputError, JobError
from effnet_batch.evaluation.labels import parse_label
from effnet_batch.ledger import Ledger, read_frames_of
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import MAX_FRAMES
from effnet_batch.models.plain_values import from_plain
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.pipelines.material import Material
from effnet_batch.pipelines.progress import Reporter
from effnet_batch.pipelines.splits import labelled_records
from effnet_batch.pipelines.verify import check, load_manifest, load_run
from effnet_batch.pipelines.views import DETECTOR, NO_DETECTOR, faces_with, make_view, sampling_with
from effnet_batch.schema import STATUS_OK, frames_schema
from effnet_batch.sink import OutputPaths
from effnet_batch.stages.frames import stored_segments
from effnet_batch.storage import Storage, canonical_uri
from effnet_batch.training.network import build_network
from effnet_batch.training.stored import StoredFrames

_IDLE: Final = {
    **dict.fromkeys(
        (field.name for field in dataclasses.fields(InputSettings)),
        "says nothing of stored frames; label what is to be taken",
    ),
    **dict.fromkeys(
        (field.name for field in dataclasses.fields(AugmentationSettings)),
        "needs the videos; stored frames cannot be changed",
    ),
    "self_blended": "needs the videos; stored frames cannot be blended",
    "resolutions": "needs the videos; stored frames have the side they have",
    "mixup": "mixes images; stored frames are of videos",
}
"""Settings that do nothing here, and why."""
_VIDEO_COLUMNS = ("uri", "member", "label", "group", "split", "status", "record_id")


def is_output(uri: str, storage: Storage) -> bool:
    """Returns whether a job of ours wrote to this folder."""
    return storage.exists(OutputPaths(canonical_uri(uri)).run)


def stored_material(
    output: str, config: FinetuneConfig, storage: Storage, reporter: Reporter
) -> Material:
    """Returns the videos of an output whose frame embeddings a head is trained on.

    What the frames are of (preprocessing, sampling, faces) is what the trained classifier is run
    with, so that `rescore` of the same output judges the same.

    Args:
        output: folder that a job wrote to with ``embeddings`` or ``frames``.
        config: of the training; its settings of sampling and faces may only agree.
        storage: reads the output.
        reporter: is warned of an output that is not complete.

    Raises:
        InputError: it holds no frames, or no video of it is labelled.
        FingerprintError: the frames are of another backbone, or of other settings.
        ConfigError: settings that say nothing of stored frames.
    """
    _check(config)
    paths = OutputPaths(canonical_uri(output))
    run = load_run(storage, paths)
    ledger = Ledger.scan(storage, paths.data)
    if not run.get("frames") or not ledger.parts:
        raise InputError(
            f"{paths.root} holds no frames; `score --embeddings` or `embed --frames` store them"
        )
    report = check(load_manifest(storage, paths), ledger, run)
    if not report.is_proven:
        reporter.warning(
            f"{paths.root} is not complete ({report.num_pending:,} sources pending, "
            f"{len(report.problems)} problems): what it has is trained on"
        )
    model, info, sha256 = build_network(config.network, config.optimisation, storage)
    digest, fields = _find_frames(run["frames"], model, paths.root)
    sampling, faces = _described(fields)
    shown = {name: fields[name] for name in ("max_frames", "segment_seconds")}
    _check_agrees(config, fields, sampling, faces, info.name)
    info = dataclasses.replace(
        info,
        preprocessing=from_plain(Preprocessing, fields["preprocessing"], "run.json"),
        sampling={**sampling, "max_clip_frames": info.sampling.get("max_clip_frames")},
        faces=faces,
    )
    view = make_view(info.sampling, info.faces, **shown)
    frames = StoredFrames(fingerprint=digest, parts=ledger.frames)
    rows = _rows(ledger, frames, view.max_clip_frames, storage)
    videos, left_out = labelled_records(rows, config, storage, parse_label)
    return Material(
        videos=videos,
        left_out=left_out,
        info=info,
        view=view,
        start_sha256=sha256,
        digest=digest,
        frames=frames,
    )


def _check(config: FinetuneConfig) -> None:
    """Refuses settings of what stored frames are past."""
    values = config.to_flat()
    for name, (_, field) in config.settings().items():
        if name in _IDLE and values[name] != field.default:
            raise ConfigError(f"--{name.replace('_', '-')} {_IDLE[name]}")


def _find_frames(
    stored: dict[str, dict[str, Any]], model: SequenceClassifier, root: str
) -> tuple[str, dict[str, Any]]:
    """Returns digest and fields of the frames that the model's own encoder would make.

    Raises:
        FingerprintError: there are none, or of several settings.
    """
    wanted = model.encoder_sha256()
    found = [digest for digest, each in stored.items() if each["encoder_sha256"] == wanted]
    if not found:
        held = ", ".join(sorted({each["encoder_sha256"][:12] for each in stored.values()}))
        hint = (
            "; the bottleneck of this network stands before the frames are pooled and would have "
            "to be the one that they were stored with: give --start with that checkpoint, or a "
            "--network without one, such as resnet50_lstm"
            if model.config.bottleneck_dim is not None
            else "; give --network and --weights, or --start, that they were stored with"
        )
        raise FingerprintError(
            f"{root} holds frames of the encoder {held}, and this network's is {wanted[:12]}{hint}"
        )
    if len(found) > 1:
        raise FingerprintError(
            f"{root} holds frames of this encoder under {len(found)} different settings; store "
            "those of one alone"
        )
    return found[0], stored[found[0]]


def _described(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns sampling and faces as checkpoints describe them."""
    faces = fields["faces"]
    if faces is None:
        return fields["sampling"], {"detector": NO_DETECTOR}
    described = {name: value for name, value in faces.items() if name != "model_sha256"}
    return fields["sampling"], {"detector": DETECTOR, **described}


def _check_agrees(
    config: FinetuneConfig,
    fields: dict[str, Any],
    sampling: dict[str, Any],
    faces: dict[str, Any],
    name: str,
) -> None:
    """Refuses settings that would show a video otherwise than it was when frames were stored."""
    if distortion := fields.get("distortion"):
        raise FingerprintError(
            f"the frames were stored distorted ({distortion}), and what is judged will not be; "
            "store them without --distortion"
        )
    size, limit = config.network.image_size, config.sampling.max_frames
    pairs = {
        "max_frames": (fields["max_frames"], None if limit == MAX_FRAMES else limit),
        "image_size": (fields["preprocessing"]["image_size"], size),
        "sampling": (sampling, sampling_with(sampling, config.sampling)),
        "faces": (faces, faces_with(faces, config.faces, name)),
        "segment_seconds": (fields["segment_seconds"], config.sampling.segment_seconds),
    }
    for what, (mine, asked) in pairs.items():
        if asked is not None and asked != mine:
            raise FingerprintError(
                f"{what}: the frames were stored with {mine}, this run asks for {asked}; leave "
                "it out, or store frames of that kind"
            )


def _rows(
    ledger: Ledger, frames: StoredFrames, longest: int | None, storage: Storage
) -> Iterator[dict[str, Any]]:
    """Yields the videos of the output; those that are ok with their clips."""
    columns = [name for name in frames_schema().names if name != "embedding"]
    for part, table in ledger.live_parts(_VIDEO_COLUMNS):
        lengths: dict[str, list[int]] = {}
        tables = read_frames_of(storage, frames.parts.get(part, ()), columns=columns)
        for segment in stored_segments(tables):
            if segment.fingerprint == frames.fingerprint:
                clips = segment.seen(longest, []).clips
                lengths.setdefault(segment.record_id, []).extend(len(clip) for _, clip in clips)
        for row in table.to_pylist():
            if row["status"] == STATUS_OK and row["record_id"] not in lengths:
                raise JobError(
                    f"frames of {row['uri']} are missing; `effnet-batch verify --deep` says more"
                )
            yield {**row, "clips_uri": part, "clip_lengths": lengths.get(row["record_id"])}
