"""The life of one output after its first run: retry, --update, a damaged part, forget."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from photographs import small_jpegs
from test_maintain import everything_in

import effnet_batch
from effnet_batch import prefixes
from effnet_batch.ledger import Ledger
from effnet_batch.pipelines.maintain import compact, forget
from effnet_batch.pipelines.run import RunSummary
from effnet_batch.pipelines.session import ray_session
from effnet_batch.pipelines.verify import verify
from effnet_batch.storage import Storage

SETTINGS = {
    "model": "mobilenet_v2",
    "weights": "random",
    "image_size": 32,
    "engine": "torch",
    "rows_per_part": 4,
}
NUM_IMAGES = 12
IMAGES = small_jpegs(NUM_IMAGES + 3, seed=7)


@pytest.fixture(scope="module", autouse=True)
def ray_running() -> Iterator[None]:
    with ray_session(None):
        yield


class Output:
    """A folder of images and the output made from it."""

    def __init__(self, folder: Path) -> None:
        self.images, self.root = folder / "images", folder / "output"
        self.images.mkdir()

    def write(self, number: int, data: bytes) -> None:
        path = self.images / f"{number:02}.jpg"
        path.write_bytes(data)
        # Written within one tick of the clock it would be of the same version.
        os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000))

    def embed(self, *, update: bool = False, retry: tuple[str, ...] = ()) -> RunSummary:
        return effnet_batch.embed(
            str(self.images), str(self.root), update=update, retry=retry, **SETTINGS
        )

    def attempts(self) -> dict[int, tuple[int, str]]:
        """Return attempt and status of the live record of every image, by its number."""
        ledger = Ledger.scan(Storage(), str(self.root / "data"))
        return {
            int(row["uri"][-6:-4]): (row["attempt"], row["status"])
            for table in ledger.live(["uri", "attempt", "status"])
            for row in table.to_pylist()
        }

    def assert_proven(self) -> None:
        report = verify(str(self.root), is_deep=True)
        assert report.is_proven, report


@pytest.mark.slow
@pytest.mark.parametrize("rows_per_pass", [prefixes.ROWS_PER_PASS, 4])
def test_an_output_through_all_that_happens_to_it(
    tmp_path: Path, rows_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "ROWS_PER_PASS", rows_per_pass)
    output = Output(tmp_path)
    for number in range(NUM_IMAGES):
        output.write(number, IMAGES[number])
    output.write(3, b"\xff\xd8\xff\xe0 damaged")
    # A first run that was killed while it wrote its manifest: without the marker it does not count.
    left = output.root / "manifest" / "part-dead-00000.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"PAR1 cut short")

    expected = dict.fromkeys(range(NUM_IMAGES), (1, "ok")) | {3: (1, "decode_error")}
    assert output.embed().num_new_records == NUM_IMAGES
    assert output.attempts() == expected
    assert not left.exists()
    output.assert_proven()

    # Killed after its last part, before it could say so: the next run has nothing to do but that.
    record = json.loads((output.root / "run.json").read_text())
    (output.root / "run.json").write_text(json.dumps({**record, "state": "running"}))
    assert output.embed().num_new_records == 0
    assert json.loads((output.root / "run.json").read_text())["state"] == "complete"

    # What changes is not looked at until somebody asks for it.
    output.write(3, IMAGES[3])
    output.write(5, IMAGES[NUM_IMAGES])
    assert output.embed().num_new_records == 0
    assert output.embed(retry=("timeout", "crashed")).num_new_records == 0
    assert output.embed(retry=("decode_error",)).num_new_records == 1
    expected[3] = (2, "fetch_error")  # another file than the listed one: --update takes it in
    assert output.attempts() == expected
    output.assert_proven()

    # Listed again: 3 and 5 are other files now, 12 is new, 0 is gone but stays.
    before = effnet_batch.read_embeddings(str(output.root))
    output.write(12, IMAGES[NUM_IMAGES + 1])
    (output.images / "00.jpg").unlink()
    assert output.embed(update=True).num_new_records == 3
    expected |= {3: (3, "ok"), 5: (2, "ok"), 12: (1, "ok")}
    assert output.attempts() == expected
    after = effnet_batch.read_embeddings(str(output.root))
    vectors = [
        dict(zip(table["uri"].to_pylist(), table["embedding"].to_pylist(), strict=True))
        for table in (before, after)
    ]
    changed = [uri for uri, vector in vectors[0].items() if vector != vectors[1][uri]]
    assert [Path(uri).name for uri in changed] == ["05.jpg"]
    output.assert_proven()

    # A damaged part is set aside, and what it held is done again.
    assert compact(str(output.root))[1] == 1
    compacted = set((output.root / "data").iterdir())
    output.write(13, IMAGES[NUM_IMAGES + 2])
    assert output.embed(update=True).num_new_records == 1
    (damaged,) = set((output.root / "data").iterdir()) - compacted
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert output.embed().num_new_records == 1
    assert (output.root / "quarantine" / damaged.name).exists()
    assert not damaged.exists()
    expected[13] = (1, "ok")
    assert output.attempts() == expected
    output.assert_proven()

    # What is forgotten does not come back, although it is still there to be listed.
    uris = tmp_path / "forget.txt"
    uris.write_text(f"{output.images / '07.jpg'}\n{output.images / '13.jpg'}\n")
    assert forget(str(output.root), str(uris))["rows erased"] == 2
    del expected[7], expected[13]
    assert output.embed(update=True).num_new_records == 0
    assert output.attempts() == expected
    output.assert_proven()
    for name in ("07.jpg", "13.jpg"):
        assert (output.images / name).exists()
        assert name not in everything_in(str(output.root))
