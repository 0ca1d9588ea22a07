"""What a video shows to what the encoders make of it: embeddings, segment by segment.

Only embeddings stay, for one segment at a time, and its pictures as JPEG where they are wanted.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Final

import numpy as np

from effnet_batch.media.jpeg import JpegSpool
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.sequence import Embeddings
from effnet_batch.stages.encode import Encoder
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.show import Pictures, Shown, Stretch, View, Viewing

_MOST_TOGETHER: Final = 16
"""Pictures of a video that go to an encoder at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class Segment(Stretch):
    """What was seen of a stretch of a video; N shots."""

    embeddings: list[Embeddings]
    """float32 [N, D] each, one per encoder."""
    pictures: JpegSpool | None = None
    """The N shots in the viewing's first recipe, where they are kept; gone with the next segment.
    """


def viewing_of(view: View, encoders: Sequence[tuple[Preprocessing, Encoder]]) -> Viewing:
    """Returns how a view is shown to encoders; those of one recipe share its pictures."""
    return Viewing(
        view,
        tuple(dict.fromkeys(preprocessing for preprocessing, _ in encoders)),
        min(_MOST_TOGETHER, *(encoder.batch_size for _, encoder in encoders)),
    )


def look(
    shown: Iterable[Shown],
    viewing: Viewing,
    encoders: Sequence[tuple[Preprocessing, Encoder]],
    clock: StageClock,
    *,
    keeps_pictures: bool = False,
) -> Iterator[Segment]:
    """Encodes what is shown of a video, segment by segment.

    Args:
        shown: from `show.show`, here or elsewhere.
        viewing: from `viewing_of`, how it is shown.
        encoders: each with the recipe that it wants.
        clock: takes the seconds of ``model``.
        keeps_pictures: keep the pictures of a segment until the next one.

    Raises:
        RecordError: the video cannot be decoded.
    """
    waiting: list[list[Future[Embeddings]]] = [[] for _ in encoders]
    pictures = JpegSpool() if keeps_pictures else None
    for each in shown:
        if isinstance(each, Pictures):
            for (preprocessing, encoder), futures in zip(encoders, waiting, strict=True):
                if preprocessing == viewing.recipes[each.recipe]:
                    futures.append(encoder.encode(each.pixels, clock))
            if pictures is not None and each.recipe == 0:
                for pixels in each.pixels:
                    pictures.add(pixels)
            continue
        embeddings = [
            np.concatenate([future.result() for future in futures])
            if futures
            else np.empty((0, encoder.embedding_dim), np.float32)
            for (_, encoder), futures in zip(encoders, waiting, strict=True)
        ]
        for futures in waiting:
            futures.clear()
        yield Segment(each.expected, each.read, each.shots, each.clips, embeddings, pictures)
        if pictures is not None:
            pictures.close()
            pictures = JpegSpool()
