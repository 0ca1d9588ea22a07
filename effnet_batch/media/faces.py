"""Faces in frames: found by YuNet, followed through time, cut out.

``FaceDetector`` finds boxes in one frame, ``track_faces`` turns a video's frames into crops that
say whose face they show. At most ``detect_every`` frames and one more are held at a time.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from effnet_batch.errors import WeightsError
from effnet_batch.media.pixels import Pixels
from effnet_batch.media.tracks import Box, TrackLinker, interpolate
from effnet_batch.media.video import Frame

MODEL_VARIABLE: Final = "EFFNET_BATCH_YUNET"
"""Environment variable that names the detector's model file."""
MODEL_REPOSITORY: Final = "opencv/face_detection_yunet"
MODEL_REVISION: Final = "3cc26e7f1014a5ee5d74a42acee58bafc9d0a310"
MODEL_FILE: Final = "face_detection_yunet_2023mar.onnx"
MODEL_SHA256: Final = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
BORDERS: Final = ("pad", "clip")

_LOG_ERRORS: Final = 2  # cv::utils::logging::LOG_LEVEL_ERROR
# Below this a frame has no face that YuNet could find, and OpenCV's network no valid input.
_MIN_FRAME_SIDE: Final = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceSettings:
    """How faces are found, followed and cut out; part of the fingerprint."""

    min_score: float = 0.7
    """Least confidence of a detection, 0..1."""
    detection_size: int = 320
    """Long side, in pixels, to which larger frames are shrunk for the detector. Faces of some 10
    pixels and more are found there; the cost grows with its square."""
    min_face_size: int = 24
    """Least short side of a face's box in the frame itself, in pixels."""
    max_faces: int = 8
    """Most faces taken from one frame, the most confident ones."""
    margin: float = 1.3
    """Side of the crop over the long side of the box; 1.3 adds 15 % on each side."""
    is_square: bool = True
    """False: each side of the crop is ``margin`` times that side of the box."""
    border: str = "pad"
    """At the frame's edge: ``pad`` fills the crop with black, ``clip`` keeps what is inside."""
    detect_every: int = 1
    """Detect on every k-th frame and interpolate the boxes of a track between."""
    min_iou: float = 0.3
    """Least overlap of successive boxes of one track (intersection over union)."""
    max_gap: int = 5
    """Most detection steps between two boxes of one track; 1 allows none without a box."""

    def __post_init__(self) -> None:
        if not (0 < self.min_score < 1 and 0 < self.min_iou < 1):
            raise ValueError(f"min_score and min_iou must be between 0 and 1, got {self}")
        least = (self.min_face_size, self.max_faces, self.detect_every, self.max_gap)
        if min(least) < 1 or self.detection_size < _MIN_FRAME_SIDE or not 1 <= self.margin <= 10:
            raise ValueError(
                "counts and sizes must be positive, detection_size at least "
                f"{_MIN_FRAME_SIDE} and margin between 1 and 10, got {self}"
            )
        if self.border not in BORDERS:
            raise ValueError(f"border must be one of {', '.join(BORDERS)}, got {self.border!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceCrop:
    """One face in one frame."""

    track: int
    """Number of the face's track in this video, from 0 in order of appearance."""
    frame_index: int
    """Position of the frame among the video's frames."""
    pts_seconds: float
    """Presentation time of the frame."""
    box: Box
    """As detected or interpolated, without the margin."""
    is_interpolated: bool
    """Whether the box was put between two detections."""
    pixels: Pixels
    """uint8 [H, W, 3], RGB, of the frame's own resolution; H = W unless clipped at an edge."""


def load_model(path: str | os.PathLike[str] | None = None) -> bytes:
    """Returns the detector's model file, checked.

    Taken from ``path``, else from the file that EFFNET_BATCH_YUNET names, else from the hub, which
    keeps it on disk after the first time.

    Raises:
        WeightsError: not there, or not the file that it must be.
    """
    named = path or os.environ.get(MODEL_VARIABLE)
    found = Path(named) if named else _fetch_model()
    try:
        data = found.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"cannot read the face detector's model {found}: {error.strerror}; {_REMEDY}"
        ) from error
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != MODEL_SHA256:
        raise WeightsError(
            f"{found} is not the face detector's model {MODEL_FILE}: its SHA-256 is {sha256}, "
            f"expected {MODEL_SHA256}; {_REMEDY}"
        )
    return data


class FaceDetector:
    """YuNet on one frame at a time; for one thread, and not to be pickled."""

    def __init__(self, model: bytes, settings: FaceSettings) -> None:
        """Builds the network.

        Args:
            model: from `load_model`; workers get the bytes and build a detector of their own.
            settings: detection size and threshold.
        """
        # Work is spread over processes; OpenCV would use every core for a millisecond's work.
        cv2.setNumThreads(1)
        # It warns of a choice of devices that nobody made.
        cv2.utils.logging.setLogLevel(_LOG_ERRORS)
        self._settings = settings
        self._network = cv2.FaceDetectorYN.create(
            "onnx",
            np.frombuffer(model, dtype=np.uint8),
            np.zeros(0, dtype=np.uint8),
            (settings.detection_size, settings.detection_size),
            score_threshold=settings.min_score,
        )

    def detect(self, pixels: Pixels) -> list[Box]:
        """Finds faces.

        Args:
            pixels: uint8 [H, W, 3], RGB.

        Returns:
            Boxes in pixels of the frame, the most confident first.
        """
        height, width = pixels.shape[:2]
        scale = min(1.0, self._settings.detection_size / max(height, width))
        small_width, small_height = round(width * scale), round(height * scale)
        if min(small_width, small_height) < _MIN_FRAME_SIDE:
            return []
        small: Any = pixels
        if scale < 1:
            small = cv2.resize(pixels, (small_width, small_height), interpolation=cv2.INTER_AREA)
        self._network.setInputSize((small_width, small_height))
        _, rows = self._network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        if rows is None:
            return []
        scale_x, scale_y = width / small_width, height / small_height
        boxes = [
            Box(
                left=left * scale_x,
                top=top * scale_y,
                right=(left + box_width) * scale_x,
                bottom=(top + box_height) * scale_y,
                score=score,
            )
            # Left, top, width, height, five landmarks, score.
            for left, top, box_width, box_height, *_, score in np.asarray(rows, float).tolist()
        ]
        large = [b for b in boxes if min(b.width, b.height) >= self._settings.min_face_size]
        large.sort(key=lambda box: (-box.score, box.left, box.top))
        return large[: self._settings.max_faces]


def track_faces(
    frames: Iterable[Frame], detect: Callable[[Pixels], list[Box]], settings: FaceSettings
) -> Iterator[FaceCrop]:
    """Finds, follows and cuts out the faces of a video.

    With ``detect_every`` above 1 the last frame is always looked at, and between two detections
    only tracks that both have are interpolated.

    Args:
        frames: whole frames of one video in order.
        detect: `FaceDetector.detect`, or another detector.
        settings: tracks and crops.

    Yields:
        Crops in order of frames, and within a frame of tracks.
    """
    linker = TrackLinker(min_iou=settings.min_iou, max_gap=settings.max_gap)
    before: dict[int, Box] = {}
    waiting: list[Frame] = []  # Since the last detection.
    is_first = True
    for frame, is_last in _mark_last(frames):
        waiting.append(frame)
        if not (is_first or is_last or len(waiting) == settings.detect_every):
            continue
        is_first = False
        boxes = detect(frame.pixels)
        after = dict(zip(linker.link(boxes), boxes, strict=True))
        for number, passed in enumerate(waiting[:-1], start=1):
            share = number / len(waiting)
            for track in sorted(before.keys() & after.keys()):
                box = interpolate(before[track], after[track], share)
                yield _cut(passed, track, box, settings, is_interpolated=True)
        for track in sorted(after):
            yield _cut(frame, track, after[track], settings, is_interpolated=False)
        before, waiting = after, []


def crop_face(
    pixels: Pixels, box: Box, *, margin: float, is_square: bool = True, border: str = "pad"
) -> Pixels:
    """Cuts out what is around the middle of a box.

    Args:
        pixels: uint8 [H, W, 3].
        box: in pixels of it; it may reach over the edges.
        margin: as in `FaceSettings`.
        is_square: as in `FaceSettings`.
        border: one of `BORDERS`.

    Returns:
        uint8 [h, w, 3], C-contiguous; with ``clip`` only what is inside the frame, at least one
        pixel.
    """
    height, width = pixels.shape[:2]
    long_side = max(box.width, box.height)
    crop_width = max(1, round((long_side if is_square else box.width) * margin))
    crop_height = max(1, round((long_side if is_square else box.height) * margin))
    left = round((box.left + box.right) / 2 - crop_width / 2)
    top = round((box.top + box.bottom) / 2 - crop_height / 2)
    first_x, last_x = np.clip([left, left + crop_width], 0, width).tolist()
    first_y, last_y = np.clip([top, top + crop_height], 0, height).tolist()
    if border == "clip":
        first_x, first_y = min(first_x, width - 1), min(first_y, height - 1)
        last_x, last_y = max(last_x, first_x + 1), max(last_y, first_y + 1)
        return np.ascontiguousarray(pixels[first_y:last_y, first_x:last_x])
    crop = np.zeros((crop_height, crop_width, 3), dtype=np.uint8)
    inside = pixels[first_y:last_y, first_x:last_x]
    y, x = first_y - top, first_x - left
    crop[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return crop


_REMEDY: Final = (
    f"set {MODEL_VARIABLE} to a copy of {MODEL_FILE} of the repository {MODEL_REPOSITORY} "
    f"(revision {MODEL_REVISION[:12]}), or take whole frames"
)


def _fetch_model() -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise WeightsError(
            "the face detector's model needs huggingface_hub: "
            f"pip install 'effnet-batch[hub]'; or {_REMEDY}"
        ) from None
    try:
        return Path(hf_hub_download(MODEL_REPOSITORY, MODEL_FILE, revision=MODEL_REVISION))
    except Exception as error:
        # Anything between a missing network and a full disk.
        raise WeightsError(
            "cannot fetch the face detector's model from the hub "
            f"({type(error).__name__}); {_REMEDY}"
        ) from error


def _mark_last(frames: Iterable[Frame]) -> Iterator[tuple[Frame, bool]]:
    waiting: Frame | None = None
    for frame in frames:
        if waiting is not None:
            yield waiting, False
        waiting = frame
    if waiting is not None:
        yield waiting, True


def _cut(
    frame: Frame, track: int, box: Box, settings: FaceSettings, *, is_interpolated: bool
) -> FaceCrop:
    return FaceCrop(
        track=track,
        frame_index=frame.index,
        pts_seconds=frame.pts_seconds,
        box=box,
        is_interpolated=is_interpolated,
        pixels=crop_face(
            frame.pixels,
            box,
            margin=settings.margin,
            is_square=settings.is_square,
            border=settings.border,
        ),
    )
