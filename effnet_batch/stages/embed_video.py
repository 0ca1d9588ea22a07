"""Videos to vectors: one row per video, the mean of what the model made of its frames or faces."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pyarrow as pa

from effnet_batch.errors import ModelError
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.schema import video_embeddings_schema
from effnet_batch.stages.encode import Encoder
from effnet_batch.stages.frames import FrameSpool
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.look import look, viewing_of
from effnet_batch.stages.read import Item
from effnet_batch.stages.records import Stamp
from effnet_batch.stages.show import View, Viewing
from effnet_batch.stages.video import FrameCounts, OpenVideo, ShownVideo, video_row


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class VideoEmbedder:
    """Embeds videos; the same for all threads of a worker."""

    view: View
    """Which pictures of a video the model is shown."""
    preprocessing: Preprocessing
    """From a picture to the model's input."""
    encoder: Encoder
    """Runs the model."""
    min_frames: int = 1
    """Videos of which fewer frames can be read are too short."""
    dtype: str = "float32"
    """Number format of stored vectors."""
    frames: str = ""
    """Fingerprint of frame embeddings that are stored."""

    @property
    def schema(self) -> pa.Schema:
        """The schema of the rows."""
        return video_embeddings_schema(float16=self.dtype == "float16")

    @property
    def viewing(self) -> Viewing:
        """What videos are shown as."""
        return viewing_of(self.view, [(self.preprocessing, self.encoder)])

    def embed(
        self,
        video: ShownVideo,
        row: dict[str, Any],
        clock: StageClock,
        frames: FrameSpool | None = None,
    ) -> None:
        """Embeds one video, holding one segment's embeddings at a time.

        Args:
            video: is shown as `viewing` says.
            row: gets the columns of `schema.video_embeddings_schema`; where an error ends the
                work, those that were known by then.
            clock: takes the seconds of ``decode`` and ``model``.
            frames: takes the embeddings of all frames.

        Raises:
            TooShortError: fewer frames than ``min_frames`` can be read.
            NoFaceError: the view wants faces and there are none.
            ModelError: what the model made of it are not finite numbers.
            RecordError: the video cannot be decoded.
        """
        counts = FrameCounts()
        total = np.zeros(self.encoder.embedding_dim, np.float64)
        num_pictures = num_tracks = 0
        viewing, encoders = self.viewing, [(self.preprocessing, self.encoder)]
        segments = look(video.show(viewing), viewing, encoders, clock)
        for number, segment in enumerate(segments):
            counts.add(segment)
            (vectors,) = segment.embeddings
            if frames is not None:
                frames.add(segment, number, self.view, vectors, self.frames)
            total += vectors.sum(axis=0, dtype=np.float64)
            num_pictures += len(vectors)
            num_tracks += len({shot.track for shot in segment.shots})
        has_faces = self.view.faces is not None
        row.update(counts.columns(has_faces=has_faces))
        precision = self.encoder.precision
        counts.check(self.min_frames, has_tracks=num_pictures > 0, precision=precision)
        # Whole frames are one track from end to end; faces are followed within a segment.
        row["num_tracks"] = num_tracks if has_faces else 1
        with np.errstate(over="ignore"):
            embedding = (total / num_pictures).astype(self.dtype)
        if not np.isfinite(embedding).all():
            raise ModelError(f"the model's output is not finite in {self.dtype}")
        row["embedding"] = embedding


def embed_video(
    item: Item,
    open_video: OpenVideo,
    embedder: VideoEmbedder,
    stamp: Stamp,
    clock: StageClock,
    frames: FrameSpool | None = None,
) -> pa.Table:
    """Embeds one video, or says why it cannot be.

    Args:
        item: what `read_items` yields.
        open_video: its RecordErrors become the row's status.
        embedder: embeds it.
        stamp: goes into the row.
        clock: takes the seconds of ``decode`` and ``model``.
        frames: takes the embeddings of all frames; to be cleared where the row is not ok.

    Returns:
        One row of ``embedder.schema``.
    """
    embed = functools.partial(embedder.embed, frames=frames)
    row = video_row(item, open_video, embed, stamp, clock)
    return pa.Table.from_pylist([row], embedder.schema)
