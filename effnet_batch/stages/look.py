"""A video to what the encoders make of it: the sampled frames, or the faces in them.

Frames are streamed: beside the decoder's own, one batch of the model's input is held per recipe,
with faces also `FaceSettings.detect_every` whole frames and one more. Only embeddings stay, for one
segment at a time.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from effnet_batch.errors import DecodeError
from effnet_batch.media.faces import FaceDetector, FaceSettings, track_faces
from effnet_batch.media.pixels import PixelConverter, Pixels
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import (
    MAX_FRAMES,
    Indices,
    Sample,
    Sampling,
    sample,
    split_segments,
)
from effnet_batch.media.tracks import Box
from effnet_batch.media.video import Frame, VideoInfo
from effnet_batch.models.engine import Engine
from effnet_batch.models.sequence import Embeddings
from effnet_batch.stages.lanes import StageClock

ALL: Final = "all"
LARGEST: Final = "largest"
WHICH_FACES: Final = (ALL, LARGEST)

_T = TypeVar("_T")


class Reader(Protocol):
    """What `media.video.VideoReader` and `media.isolated_video.IsolatedVideo` both are."""

    @property
    def info(self) -> VideoInfo:
        """Size, length, codec."""
        ...

    @property
    def pts_seconds(self) -> npt.NDArray[np.float64]:
        """float64 [F], rising: when each frame is shown."""
        ...

    @property
    def is_partial(self) -> bool:
        """Whether the file is cut or damaged."""
        ...

    def read(self, indices: Indices, preprocessing: Preprocessing | None) -> Iterator[Frame]:
        """Decodes the given frames, one at a time."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Which pictures of a video a checkpoint is shown."""

    sampling: Sampling
    """Which frames."""
    max_clip_frames: int | None = None
    """Longest clip; None for any length."""
    max_frames: int = MAX_FRAMES
    """Most frames of a video, or of a segment."""
    segment_seconds: float | None = None
    """Stretches that are sampled on their own; None for the video at once."""
    faces: FaceSettings | None = None
    """How faces are found; None shows whole frames."""
    which_faces: str = ALL
    """One of `WHICH_FACES`."""

    def __post_init__(self) -> None:
        if self.which_faces not in WHICH_FACES:
            raise ValueError(
                f"which_faces must be one of {', '.join(WHICH_FACES)}, got {self.which_faces!r}"
            )


@dataclasses.dataclass(frozen=True)
class Shot:
    """One picture that was encoded: a frame, or a face in it."""

    track: int
    """Number of the face in its segment; 0 for whole frames."""
    frame_index: int
    """Position of the frame among the video's frames."""
    pts_seconds: float
    """Presentation time of the frame."""
    box: Box | None
    """Of the face, in pixels of the upright frame; None for whole frames."""


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """What was seen of a stretch of a video; N shots."""

    expected: list[int]
    """Frames that the sampling asked for."""
    read: list[int]
    """Those of them that could be decoded."""
    shots: list[Shot]
    """In order of frames."""
    clips: list[tuple[int, Indices]]
    """Track, and int64 [T] positions in ``shots``, rising: what a sequence model sees together."""
    embeddings: list[Embeddings]
    """float32 [N, D] each, one per encoder."""


Encoder = tuple[Preprocessing, Engine]
"""A recipe and what runs the frame encoder that wants it."""


def look(
    reader: Reader,
    view: View,
    encoders: Sequence[Encoder],
    face_model: bytes | None,
    clock: StageClock,
) -> Iterator[Segment]:
    """Encodes what a view shows of a video, segment by segment.

    A face that is seen on both sides of a segment's edge is a track of each.

    Args:
        reader: the video.
        view: which pictures.
        encoders: each sees all of them; encoders of one recipe share frames and crops.
        face_model: the face detector's file, if the view wants faces.
        clock: takes the seconds of ``decode``, faces included, and ``model``.

    Raises:
        RecordError: the video cannot be decoded.
    """
    times = reader.pts_seconds
    stretches = (
        (range(len(times)),)
        if view.segment_seconds is None
        else split_segments(times, view.segment_seconds)
    )
    for stretch in stretches:
        taken = sample(
            times[stretch.start : stretch.stop],
            view.sampling,
            max_frames=view.max_frames,
            max_clip_frames=view.max_clip_frames,
        )
        indices = taken.indices + stretch.start
        batches = {preprocessing: _Batches(clock) for preprocessing, _ in encoders}
        for preprocessing, engine in encoders:
            batches[preprocessing].engines.append(engine)
        if view.faces is None:
            read, shots = _show_frames(reader, indices, batches, clock)
        else:
            assert face_model is not None
            detect = _detector(face_model, view.faces, view.which_faces)
            read, shots = _show_faces(reader, indices, detect, view.faces, batches, clock)
        found = {preprocessing: batch.finish() for preprocessing, batch in batches.items()}
        yield Segment(
            expected=indices.tolist(),
            read=read,
            shots=shots,
            clips=_clips(taken, indices, shots),
            embeddings=[found[preprocessing][engine] for preprocessing, engine in encoders],
        )


class _Batches:
    """Gathers pictures of one recipe and runs the engines over full batches."""

    def __init__(self, clock: StageClock) -> None:
        self.engines: list[Engine] = []
        self._clock = clock
        self._waiting: list[Pixels] = []
        self._done: list[list[Embeddings]] = []

    def add(self, pixels: Pixels) -> None:
        """Takes one picture, uint8 [S, S, 3]."""
        self._waiting.append(pixels)
        if len(self._waiting) == min(engine.batch_size for engine in self.engines):
            self._run()

    def finish(self) -> dict[Engine, Embeddings]:
        """Returns float32 [N, D] of every engine."""
        if self._waiting:
            self._run()
        return {
            engine: np.concatenate([done[number] for done in self._done])
            if self._done
            else np.empty((0, engine.embedding_dim), np.float32)
            for number, engine in enumerate(self.engines)
        }

    def _run(self) -> None:
        frames = np.stack(self._waiting)
        self._waiting = []
        with self._clock.measure("model"):
            self._done.append([engine.run(frames).embeddings for engine in self.engines])


def _show_frames(
    reader: Reader,
    indices: Indices,
    batches: dict[Preprocessing, _Batches],
    clock: StageClock,
) -> tuple[list[int], list[Shot]]:
    """Encodes whole frames, decoding them once per recipe."""
    shown: list[list[Shot]] = []
    for preprocessing, batch in batches.items():
        shots = []
        for frame in _timed(reader.read(indices, preprocessing), clock):
            batch.add(frame.pixels)
            shots.append(Shot(0, frame.index, frame.pts_seconds, None))
        shown.append(shots)
    if any(shots != shown[0] for shots in shown):
        raise DecodeError("two readings of this damaged video gave different frames")
    return [shot.frame_index for shot in shown[0]], shown[0]


def _show_faces(
    reader: Reader,
    indices: Indices,
    detect: Callable[[Pixels], list[Box]],
    settings: FaceSettings,
    batches: dict[Preprocessing, _Batches],
    clock: StageClock,
) -> tuple[list[int], list[Shot]]:
    """Encodes the faces of whole frames, cutting each out once."""
    read: list[int] = []
    shots: list[Shot] = []
    converters = {preprocessing: PixelConverter(preprocessing) for preprocessing in batches}

    def frames() -> Iterator[Frame]:
        for frame in reader.read(indices, None):
            read.append(frame.index)
            yield frame

    for crop in _timed(track_faces(frames(), detect, settings), clock):
        for preprocessing, batch in batches.items():
            batch.add(converters[preprocessing].fit(crop.pixels))
        shots.append(Shot(crop.track, crop.frame_index, crop.pts_seconds, crop.box))
    return read, shots


def _detector(model: bytes, settings: FaceSettings, which: str) -> Callable[[Pixels], list[Box]]:
    detector = FaceDetector(model, settings)
    if which == ALL:
        return detector.detect

    def detect_largest(pixels: Pixels) -> list[Box]:
        boxes = detector.detect(pixels)
        return [max(boxes, key=lambda box: box.width * box.height)] if boxes else []

    return detect_largest


def _clips(taken: Sample, indices: Indices, shots: list[Shot]) -> list[tuple[int, Indices]]:
    """Returns the clips of every track; frames that it is not in, or nobody could read, are out."""
    frames = np.array([shot.frame_index for shot in shots], np.int64)
    tracks = np.array([shot.track for shot in shots], np.int64)
    clips = []
    for track, clip in itertools.product(np.unique(tracks).tolist(), taken.clips):
        positions = np.flatnonzero((tracks == track) & np.isin(frames, indices[clip]))
        if len(positions):
            clips.append((track, positions.astype(np.int64)))
    return clips


def _timed(items: Iterable[_T], clock: StageClock) -> Iterator[_T]:
    """Passes items on, adding the time that each takes to come to ``decode``."""
    stream = iter(items)
    while True:
        with clock.measure("decode"):
            item = next(stream, None)
        if item is None:
            return
        yield item
