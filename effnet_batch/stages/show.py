"""A video to what a model is shown of it: the sampled frames, or the faces in them.

Frames are streamed: beside the decoder's own, a few pictures are held per recipe, with faces also
`FaceSettings.detect_every` whole frames and one more. Nothing here needs the model, so that it may
run where none is.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from effnet_batch.media.distortions import Distortion, distort
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
from effnet_batch.stages.lanes import StageClock

ALL: Final = "all"
LARGEST: Final = "largest"
WHICH_FACES: Final = (ALL, LARGEST)


class Reader(Protocol):
    """What `media.video.VideoReader` is, and what stands in for it."""

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

    @property
    def decoder(self) -> str:
        """What decoded its frames up to now."""
        ...

    def read(self, indices: Indices, *recipes: Preprocessing | None) -> Iterator[Frame]:
        """Decodes the given frames, one at a time, each in every form asked for."""
        ...


class CropFitter(Protocol):
    """Resizes what is cut out of frames, somewhere else than where they are."""

    def fit(self, crop: Pixels, recipe: Preprocessing) -> Any:
        """Makes a model's input of uint8 [H, W, 3]; it may lie wherever it was made."""
        ...

    def stack(self, fitted: list[Any]) -> Pixels:
        """Returns some of them as uint8 [n, S, S, 3]."""
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
    distortion: Distortion | None = None
    """What frames suffer before anything else looks at them."""

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


@dataclasses.dataclass(frozen=True)
class Viewing:
    """What a group of models is shown of a video."""

    view: View
    """Which pictures."""
    recipes: tuple[Preprocessing, ...]
    """The forms that the pictures come in, each once."""
    num_together: int
    """Most pictures that are handed on at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Some pictures of one recipe, in order."""

    recipe: int
    """Place in `Viewing.recipes`."""
    pixels: npt.NDArray[np.uint8]
    """uint8 [n, S, S, 3], n from 1 to `Viewing.num_together`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stretch:
    """What the pictures of a segment are, told when the last of its N was shown."""

    expected: list[int]
    """Frames that the sampling asked for."""
    read: list[int]
    """Those of them that could be decoded."""
    shots: list[Shot]
    """In order of frames."""
    clips: list[tuple[int, Indices]]
    """Track, and int64 [T] positions in ``shots``, rising: what a sequence model sees together."""


Shown = Pictures | Stretch


def show(
    reader: Reader,
    viewing: Viewing,
    face_model: bytes | None,
    clock: StageClock,
    fitter: CropFitter | None = None,
) -> Iterator[Shown]:
    """Yields the pictures of a video and, after those of every segment, what they are.

    A face that is seen on both sides of a segment's edge is a track of each.

    Args:
        reader: the video.
        viewing: which pictures, in which form; every recipe gets all of them.
        face_model: the face detector's file, if the view wants faces.
        clock: takes the seconds of ``decode``, faces included.
        fitter: resizes faces; by default this thread does.

    Raises:
        RecordError: the video cannot be decoded.
    """
    view, times = viewing.view, reader.pts_seconds
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
        read: list[int] = []
        shots: list[Shot] = []
        stack: Callable[[list[Any]], Pixels] = np.stack
        if view.faces is None:
            frames = _read(reader, indices, view.distortion, *viewing.recipes)
            pictures: Iterator[tuple[int, Any]] = _frames(frames, len(viewing.recipes), read, shots)
        else:
            assert face_model is not None
            detect = _detector(face_model, view.faces, view.which_faces)
            frames = _read(reader, indices, view.distortion, None)
            fits = [
                functools.partial(fitter.fit, recipe=each) if fitter else PixelConverter(each).fit
                for each in viewing.recipes
            ]
            pictures = _faces(frames, detect, view.faces, fits, read, shots)
            stack = fitter.stack if fitter else np.stack
        together = _together(pictures, viewing.num_together, stack)
        yield from clock.measure_each(together, "decode")
        yield Stretch(indices.tolist(), read, shots, _clips(taken, indices, shots))


def _read(
    reader: Reader,
    indices: Indices,
    distortion: Distortion | None,
    *recipes: Preprocessing | None,
) -> Iterator[Frame]:
    """Yields frames in every form, whole or as a model's input; a distortion comes first."""
    if distortion is None:
        yield from reader.read(indices, *recipes)
        return
    converters = [None if recipe is None else PixelConverter(recipe) for recipe in recipes]
    for frame in distort(reader.read(indices, None), distortion):
        for converter in converters:
            pixels = frame.pixels if converter is None else converter.fit(frame.pixels)
            yield dataclasses.replace(frame, pixels=pixels)


def _frames(
    frames: Iterable[Frame], num_recipes: int, read: list[int], shots: list[Shot]
) -> Iterator[tuple[int, Pixels]]:
    """Yields whole frames with their recipe; every frame comes in the form of each in turn."""
    for recipe, frame in zip(itertools.cycle(range(num_recipes)), frames, strict=False):
        if recipe == 0:
            read.append(frame.index)
            shots.append(Shot(0, frame.index, frame.pts_seconds, None))
        yield recipe, frame.pixels


def _faces(
    frames: Iterable[Frame],
    detect: Callable[[Pixels], list[Box]],
    settings: FaceSettings,
    fits: Sequence[Callable[[Pixels], Any]],
    read: list[int],
    shots: list[Shot],
) -> Iterator[tuple[int, Any]]:
    """Yields the faces of whole frames in each form, with its number, cutting each out once."""

    def noted() -> Iterator[Frame]:
        for frame in frames:
            read.append(frame.index)
            yield frame

    for crop in track_faces(noted(), detect, settings):
        shots.append(Shot(crop.track, crop.frame_index, crop.pts_seconds, crop.box))
        for recipe, fit in enumerate(fits):
            yield recipe, fit(crop.pixels)


def _together(
    pictures: Iterable[tuple[int, Any]], num_together: int, stack: Callable[[list[Any]], Pixels]
) -> Iterator[Pictures]:
    """Joins the pictures of a recipe."""
    waiting: dict[int, list[Any]] = {}
    for recipe, pixels in pictures:
        group = waiting.setdefault(recipe, [])
        group.append(pixels)
        if len(group) == num_together:
            yield Pictures(recipe, stack(waiting.pop(recipe)))
    for recipe, group in waiting.items():
        yield Pictures(recipe, stack(group))


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
