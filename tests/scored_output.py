"""An output as `score` leaves it, made of rows, without the models and hours behind a real one."""

import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from effnet_batch import schema
from effnet_batch.sink import part_bytes

FAKE_FROM, NO_FORGERY_BELOW = 0.7, 0.3

HOSTILE = [
    "<script>window.stolen=1</script>.mp4",
    '"><img src=x onerror=window.stolen=2>.mp4',
    "'onmouseover='window.stolen=3'.mp4",
    "</title></table></script><svg onload=window.stolen=4>.mp4",
    "{{ 7 * 7 }}{% raw %}&lt;b&gt;&amp;.mp4",
    "javascript:window.stolen=5//‮4pm.mp4",
]
"""Names that would run a script, break out of where they stand, or lie about their ending."""


@functools.cache
def jpeg(color: tuple[int, int, int]) -> bytes:
    """Returns a picture of 200 × 200 pixels in one colour."""
    file = io.BytesIO()
    Image.new("RGB", (200, 200), color).save(file, "JPEG")
    return file.getvalue()


def video_row(number: int, name: str | None = None, *, attempt: int = 1) -> dict[str, Any]:
    """Returns a row whose values a number decides.

    One in eleven has no score, one in twenty has crops, one in 97 is long; with a name of its own a
    video has a high score.
    """
    random = np.random.default_rng([number, attempt])
    uri = f"s3://archive/day {number % 7}/{name or f'clip-{number:05}.mp4'}"
    row: dict[str, Any] = {
        "uri": uri,
        "label": HOSTILE[0] if number % 50 == 3 else ("fake", "real", None)[number % 3],
        "run_id": "run",
        "fingerprint": "f" * 16,
        "source_id": schema.source_id(uri),
        "record_id": schema.record_id(uri, None, 0),
        "source_version": "v1",
        "attempt": attempt,
        "status": "ok",
        "num_source_records": 1,
    }
    if number % 11 == 5:
        status, error = [
            ("decode_error", "DecodeError"),
            ("fetch_error", "FileNotFoundError"),
            ("no_face", "NoFaceError"),
        ][number % 3]
        return {**row, "status": status, "error_type": error, "error_message": HOSTILE[1]}
    logit = float(np.float32(4 + number / 1000 if name else random.normal(0, 2.5)))
    score = float(np.float32(1 / (1 + np.exp(-logit))))
    num_frames = 500 if number % 97 == 0 else 24
    tracks = []
    for track in range(1 + number % 3):
        first = track * 0.5
        values = np.clip(score + random.normal(0, 0.12, num_frames).cumsum() / 4, 0.001, 0.999)
        frames = [
            {"pts_seconds": first + i * 0.2, "logit": 0.0, "score": float(value)}
            for i, value in enumerate(values)
        ]
        tracks.append(
            {
                "track": track,
                "first_pts_seconds": frames[0]["pts_seconds"],
                "last_pts_seconds": frames[-1]["pts_seconds"],
                "logit": logit,
                "score": score * 0.9**track,
                "frames": frames,
            }
        )
    verdict = "undecided"
    if score >= FAKE_FROM:
        verdict = "fake"
    elif score < NO_FORGERY_BELOW:
        verdict = "no_forgery_found"
    return {
        **row,
        "verdict": verdict,
        "score": score,
        "logit": logit,
        "suspicious_start_seconds": 0.6,
        "suspicious_end_seconds": 2.4,
        "duration_seconds": num_frames * 0.2 + 1.0 + number % 5,
        "fps": 25.0,
        "codec": "h264",
        "width": 640,
        "height": 480,
        "is_partial": number % 40 == 0,
        "num_frames_used": num_frames,
        "num_faces": num_frames * len(tracks),
        "num_tracks": len(tracks),
        "aggregation": "steps=mean clips=mean tracks=max",
        "tracks": tracks,
        "crops": [
            {
                "track": 0,
                "pts_seconds": 0.2 * i,
                "score": 0.9 - i / 10,
                "jpeg": jpeg((i * 30, 90, 60)),
            }
            for i in range(8)
        ]
        if number % 20 == 0
        else None,
    }


def write_output(root: Path, rows: list[dict[str, Any]], *, rows_per_part: int = 64) -> None:
    """Writes an output of these rows, with a run.json as a run leaves it."""
    data = root / "data"
    data.mkdir(parents=True)
    for number, start in enumerate(range(0, len(rows), rows_per_part)):
        table = pa.Table.from_pylist(rows[start : start + rows_per_part], schema.videos_schema())
        part = part_bytes(table, {"fingerprint": "f" * 16})
        (data / f"part-run-{number:06}.parquet").write_bytes(part)
    run = {
        "job": "score",
        "input": "s3://archive",
        "fingerprint": "f" * 16,
        "state": "complete",
        "run_id": "20260101T000000-abcdef",
        "resolved": {
            "checkpoints": [{"info": {"name": "tiny-0"}}],
            "thresholds": {"fake": FAKE_FROM, "no_forgery_found": NO_FORGERY_BELOW},
            "engine": {"engine": "torch", "precision": "fp32", "device": "cpu"},
        },
    }
    (root / "run.json").write_text(json.dumps(run))
