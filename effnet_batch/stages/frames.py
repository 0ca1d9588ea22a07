"""Frame embeddings as rows: from what was encoded to what is stored, and back."""

import dataclasses
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from effnet_batch.media.sampling import find_clips
from effnet_batch.media.tracks import Box
from effnet_batch.models.sequence import Embeddings
from effnet_batch.schema import frames_schema
from effnet_batch.stages.look import Segment
from effnet_batch.stages.show import Shot, View

_SPOOL_BYTES: Final = 16 << 20
"""Bytes of frame rows of one video that stay in memory; more go to a file without a name."""
_RECORD_COLUMNS: Final = ("uri", "member", "run_id", "source_id", "record_id", "attempt")
_EDGES: Final = ("left", "top", "right", "bottom")


class FrameSpool:
    """The frame rows of one record, until the part takes them that the record goes into.

    However long the video, little of it is held in memory.
    """

    def __init__(self, record: dict[str, Any], *, float16: bool) -> None:
        """Opens a spool; nothing is in it.

        Args:
            record: the columns of the record that frames share, as `records.record_columns` has
                them.
            float16: store the vectors as float16 instead of float32.
        """
        self._record = {name: record[name] for name in _RECORD_COLUMNS}
        self._schema = frames_schema(float16=float16)
        self._file = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115  see close
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._views: dict[str, View] = {}

    def add(
        self, segment: Segment, number: int, view: View, embeddings: Embeddings, fingerprint: str
    ) -> None:
        """Takes what one encoder saw of a segment.

        Args:
            segment: shots, and the frames that were asked for; the embeddings in it are not looked
                at.
            number: of the segment in the video; numbers never fall, but for another fingerprint.
            view: what the segment was seen through.
            embeddings: float32 [N, D], one per shot.
            fingerprint: what the embeddings depend on. Two views of one fingerprint show the same
                pictures, cut into other clips: only the first is taken.
        """
        if self._views.setdefault(fingerprint, view) != view:
            return
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._file, self._schema)
        common = {**self._record, "segment": number, "fingerprint": fingerprint}
        self._writer.write_table(_frame_table(segment, view, embeddings, common, self._schema))

    def clear(self) -> None:
        """Drops what is in it: the record failed after all."""
        self._file.seek(0)
        self._file.truncate()
        self._writer = None
        self._views.clear()

    def tables(self) -> Iterator[pa.Table]:
        """Yields rows of `schema.frames_schema` in order; once, and nothing is added afterwards."""
        if self._writer is None:
            return
        self._writer.close()
        self._file.seek(0)
        for batch in pa.ipc.open_stream(self._file):
            yield pa.Table.from_batches([batch])

    def close(self) -> None:
        """Gives memory and file back."""
        self._file.close()


@dataclasses.dataclass(frozen=True, eq=False)
class StoredSegment:
    """The rows of a segment of one video as one encoder saw it."""

    record_id: str
    fingerprint: str
    number: int
    """Of the segment in the video."""
    rows: pa.Table
    """Of `schema.frames_schema`."""

    @property
    def embeddings(self) -> Embeddings:
        """float32 [N, D], one per row."""
        values = pc.list_flatten(self.rows["embedding"].combine_chunks())
        vectors = values.to_numpy(zero_copy_only=False).reshape(self.rows.num_rows, -1)
        return np.asarray(vectors, np.float32)

    def seen(self, longest: int | None, embeddings: list[Embeddings]) -> Segment:
        """Returns the segment as a model saw it that sees at most ``longest`` frames together.

        Args:
            longest: None for any number.
            embeddings: float32 [N, D] each, one per encoder that saw the segment.
        """
        names = ("track", "frame_index", "pts_seconds", *_EDGES, "face_score")
        columns = [self.rows[name].to_pylist() for name in names]
        shots = []
        for track, index, pts, left, top, right, bottom, score in zip(*columns, strict=True):
            box = None
            if left is not None:
                box = Box(left=left, top=top, right=right, bottom=bottom, score=score)
            shots.append(Shot(track, index, pts, box))
        clips: dict[tuple[int, int, int], list[int]] = {}
        places = zip(
            self.rows["clips"].to_pylist(), self.rows["clip_steps"].to_pylist(), strict=True
        )
        for position, (numbers, steps) in enumerate(places):
            for number, step in zip(numbers, steps, strict=True):
                cut = step // longest if longest else 0
                clips.setdefault((shots[position].track, number, cut), []).append(position)
        return Segment(
            expected=[],
            read=[],
            shots=shots,
            clips=[(key[0], np.array(clip, np.int64)) for key, clip in sorted(clips.items())],
            embeddings=embeddings,
        )


def stored_segments(tables: Iterable[pa.Table]) -> Iterator[StoredSegment]:
    """Joins rows of `schema.frames_schema` to segments; one at a time is held."""
    key: tuple[str, str, int] | None = None
    gathered: list[pa.Table] = []
    for table in tables:
        names = ("record_id", "fingerprint", "segment")
        keys = list(zip(*(table[name].to_pylist() for name in names), strict=True))
        start = 0
        for mine, group in itertools.groupby(keys):
            length = sum(1 for _ in group)
            if key is not None and mine != key:
                yield StoredSegment(*key, pa.concat_tables(gathered))
                gathered = []
            key = mine
            gathered.append(table.slice(start, length))
            start += length
    if key is not None:
        yield StoredSegment(*key, pa.concat_tables(gathered))


def _frame_table(
    segment: Segment,
    view: View,
    embeddings: Embeddings,
    common: dict[str, Any],
    schema: pa.Schema,
) -> pa.Table:
    shots, (num_rows, width) = segment.shots, embeddings.shape
    places = _places_in_clips(segment, view)
    boxes = [shot.box for shot in shots]
    vector = schema.field("embedding").type
    values = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * width)
    columns: dict[str, Any] = {
        **{
            name: pa.repeat(pa.scalar(value, schema.field(name).type), num_rows)
            for name, value in common.items()
        },
        "track": [shot.track for shot in shots],
        "frame_index": [shot.frame_index for shot in shots],
        "pts_seconds": [shot.pts_seconds for shot in shots],
        **{edge: [box and getattr(box, edge) for box in boxes] for edge in _EDGES},
        "face_score": [box and box.score for box in boxes],
        "clips": [[clip for clip, _ in places[shot.frame_index]] for shot in shots],
        "clip_steps": [[step for _, step in places[shot.frame_index]] for shot in shots],
        "embedding": pa.ListArray.from_arrays(
            offsets, values.cast(vector.value_type, safe=False), type=vector
        ),
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _places_in_clips(segment: Segment, view: View) -> dict[int, list[tuple[int, int]]]:
    """Returns, by frame index, the clips that each frame is in and its step in them."""
    expected = np.array(segment.expected, np.int64)
    places: dict[int, list[tuple[int, int]]] = {index: [] for index in segment.expected}
    for clip, positions in enumerate(
        find_clips(expected, view.sampling, max_frames=view.max_frames)
    ):
        for step, index in enumerate(expected[positions].tolist()):
            places[index].append((clip, step))
    return places
