"""Lists of URIs: their formats, and what a hostile one gets."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from manifest_tables import build_manifest, save_manifest, summarize

from effnet_batch.cli import main
from effnet_batch.errors import InputError
from effnet_batch.manifest import fetch_uris
from effnet_batch.schema import source_id
from effnet_batch.storage import Storage, StorageOptions

SECRET = "SENTINELsecret0123"
SIGNED = f"https://h.example/a.jpg?v=1&X-Amz-Signature={SECRET}&X-Amz-Expires=60"


@pytest.fixture
def storage() -> Storage:
    return Storage()


def uris(table: pa.Table) -> list[str]:
    return list(table["uri"].to_pylist())


def test_text_lists_take_bom_crlf_comments_blanks_duplicates_and_any_bytes(
    tmp_path: Path, storage: Storage
) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(
        b"\xef\xbb\xbf# a comment\r\n\r\nsub/a.jpg\r\n  /abs/b.jpg\t\r\n./sub/a.jpg\n"
        b"s3://bucket/k%20e#y.jpg\n\xff.jpg\nno-extension\nx.tar\n../up.jpg\n" + "é.png".encode()
    )
    table = build_manifest(str(path), storage)
    assert uris(table) == [
        f"{tmp_path}/sub/a.jpg",
        "/abs/b.jpg",
        "s3://bucket/k%20e#y.jpg",
        f"file://{tmp_path}/%FF.jpg",
        f"{tmp_path}/no-extension",
        f"{tmp_path}/x.tar",
        f"{tmp_path.parent}/up.jpg",
        f"{tmp_path}/é.png",
    ]
    assert table["kind"].to_pylist() == [
        "image", "image", "image", "image", "image", "tar", "image", "image"
    ]  # fmt: skip


def write_csv(path: Path) -> None:
    path.write_text('ID,URL,Label,group\r\n1,a.jpg,3,g1\n2,"b,c.jpg",cat,\n\n3,d.jpg\n')


def write_tsv(path: Path) -> None:
    path.write_text("url\tlabel\tgroup\na.jpg\t3\tg1\nb,c.jpg\tcat\t\nd.jpg\n")


def write_jsonl(path: Path) -> None:
    rows = [{"url": "a.jpg", "label": 3, "group": "g1"}, {"url": "b,c.jpg", "label": "cat"}]
    path.write_text("\n".join(map(json.dumps, [*rows, {"path": "d.jpg", "label": None}])))


def write_parquet(path: Path) -> None:
    table = pa.table(
        {
            "url": pa.array(["a.jpg", "b,c.jpg", "d.jpg"]).dictionary_encode(),
            "label": ["3", "cat", None],
            "group": ["g1", None, None],
            "caption": ["x", "y", "z"],
        }
    )
    pq.write_table(table, path, row_group_size=2)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("l.csv", write_csv),
        ("l.tsv", write_tsv),
        ("l.jsonl", write_jsonl),
        ("l.ndjson", write_jsonl),
        ("l.parquet", write_parquet),
    ],
)
def test_tables_of_uris_carry_labels_and_groups(
    tmp_path: Path, storage: Storage, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    table = build_manifest(str(tmp_path / name), storage, label_from="parent")
    assert uris(table) == [f"{tmp_path}/{each}" for each in ("a.jpg", "b,c.jpg", "d.jpg")]
    assert table["label"].to_pylist() == ["3", "cat", tmp_path.name]
    assert table["group"].to_pylist() == ["g1", None, None]


def test_a_parquet_input_is_a_list_or_a_shard_by_its_columns(
    tmp_path: Path, storage: Storage
) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"url": ["a.jpg"], "jpg": [b"bytes"]}), path)
    assert uris(build_manifest(str(path), storage)) == [str(path)]
    pq.write_table(pa.table({"url": ["a.jpg"], "thumb": [b"bytes"]}), path)
    assert uris(build_manifest(str(path), storage)) == [f"{tmp_path}/a.jpg"]
    for override in ({"kind": "parquet"}, {"media_column": "thumb"}):
        assert uris(build_manifest(str(path), storage, **override)) == [str(path)]
    pq.write_table(pa.table({"text": ["a.jpg"]}), path)
    assert build_manifest(str(path), storage)["kind"].to_pylist() == ["parquet"]
    path.write_bytes(b"not Parquet")
    assert build_manifest(str(path), storage)["kind"].to_pylist() == ["parquet"]


HOSTILE = {
    "http://169.254.169.254/latest/meta-data/": "private",
    "http://metadata.google.internal/x": "private",
    "http://localhost:8265/": "private",
    "http://2130706433/": "private",
    "http://0x7f.1/a.jpg": "private",
    "http://[::1]/a.jpg": "private",
    "http://[::ffff:10.0.0.1]/a.jpg": "private",
    "http://[::1": "no URI",
    "simplecache::s3://bucket/a.jpg": "::",
    "zip://a.jpg::/etc/secret.zip": "::",
    f"https://user:{SECRET}@h.example/a.jpg": "user information",
    "gopher://h/a": "scheme",
    "memory://a.jpg": "scheme",
    "https://": "host",
    "x" * 70_000: "longer than",
}


def test_refused_entries_name_line_and_reason_and_leak_nothing(
    tmp_path: Path, storage: Storage
) -> None:
    path = tmp_path / "list.txt"
    path.write_text("".join(f"ok{i}.jpg\n{line}\n" for i, line in enumerate(HOSTILE)))
    with pytest.raises(InputError) as caught:
        build_manifest(str(path), storage)
    message = str(caught.value)
    assert f"{len(HOSTILE)} entries are refused" in message
    assert SECRET not in message
    lines = message.splitlines()[1:]
    assert len(lines) == 10
    for index, (line, reason) in enumerate(zip(lines, HOSTILE.values(), strict=False)):
        assert line.startswith(f"  line {2 * index + 2}: ")
        assert reason in line
        assert len(line) < 500
    table = build_manifest(str(path), storage, skip_bad_lines=True)
    assert uris(table) == [f"{tmp_path}/ok{i}.jpg" for i in range(len(HOSTILE))]
    assert summarize(table).num_bad_lines == len(HOSTILE)


def test_every_hostile_entry_is_refused_on_its_own(tmp_path: Path, storage: Storage) -> None:
    for entry, reason in HOSTILE.items():
        (tmp_path / "list.txt").write_text(f"{entry}\n")
        with pytest.raises(InputError, match=reason):
            build_manifest(str(tmp_path / "list.txt"), storage)


def test_private_hosts_are_taken_when_allowed(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("http://127.0.0.1/a.jpg\n")
    allowed = Storage(StorageOptions(allow_private_hosts=True))
    assert uris(build_manifest(str(tmp_path / "list.txt"), allowed)) == ["http://127.0.0.1/a.jpg"]


@pytest.mark.parametrize("entry", ["/etc/passwd", "file:///etc/passwd", "FILE:/etc/passwd", "../x"])
@pytest.mark.parametrize("form", ["txt", "csv", "jsonl", "parquet", "manifest"])
def test_a_remote_list_names_no_local_file(s3_prefix: str, entry: str, form: str) -> None:
    storage = Storage()
    uri = f"{s3_prefix}list.{'parquet' if form == 'manifest' else form}"
    table = pa.table({"uri": [entry]})
    if form == "txt":
        storage.write(uri, f"{entry}\n".encode())
    elif form == "csv":
        storage.write(uri, f"uri\n{entry}\n".encode())
    elif form == "jsonl":
        storage.write(uri, json.dumps({"uri": entry}).encode())
    elif form == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        storage.write(uri, sink.getvalue().to_pybytes())
    else:
        save_manifest(storage, uri, table.replace_schema_metadata({"effnet_batch.manifest": "{}"}))
    with pytest.raises(InputError, match=r"local file|leaves"):
        build_manifest(uri, storage)


def test_a_remote_list_resolves_against_its_own_folder(s3_prefix: str) -> None:
    storage = Storage()
    storage.write(f"{s3_prefix}lists/l.txt", b"a b.jpg\nsub/c.jpg\ns3://other/d.jpg\n\xff.jpg\n")
    with pytest.raises(InputError, match=r"1 entries are refused.*\n  line 4: .*UTF-8"):
        build_manifest(f"{s3_prefix}lists/l.txt", storage)
    table = build_manifest(f"{s3_prefix}lists/l.txt", storage, skip_bad_lines=True)
    assert uris(table) == [
        f"{s3_prefix}lists/a b.jpg",
        f"{s3_prefix}lists/sub/c.jpg",
        "s3://other/d.jpg",
    ]


def test_a_manifest_file_is_not_believed(tmp_path: Path, storage: Storage) -> None:
    (tmp_path / "l.txt").write_text("a.jpg\nb.jpg\nc.jpg\n")
    table = build_manifest(str(tmp_path / "l.txt"), storage)
    forged = table.set_column(
        0, table.schema.field(0), pa.array(["http://10.0.0.1/a", f"{tmp_path}/x/../b.jpg", "/c"])
    ).set_column(2, table.schema.field(2), pa.array(["image", "image", "exe"]))
    save_manifest(storage, str(tmp_path / "m.parquet"), forged)
    with pytest.raises(InputError, match="2 entries are refused"):
        build_manifest(str(tmp_path / "m.parquet"), storage)
    kept = build_manifest(str(tmp_path / "m.parquet"), storage, skip_bad_lines=True)
    assert uris(kept) == [f"{tmp_path}/b.jpg"]
    assert kept["source_id"].to_pylist() == [source_id(f"{tmp_path}/b.jpg")]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("l.csv", "name,size\na.jpg,3\n", "no column uri, url, path, file; got: name, size"),
        ("l.csv", 'url\n"open\nb.jpg\n', "line 2: is not CSV"),
        ("l.csv", "id,url\n7\n", "line 2: has no text"),
        ("l.jsonl", '{"url": "a.jpg"}\n{"url"\n', "line 2: is not JSON"),
        ("l.jsonl", "[" * 60_000, "line 1: is not JSON"),
        ("l.jsonl", '["a.jpg"]', "line 1: is not a JSON object"),
        ("l.jsonl", '{"url": null}', "line 1: has no text"),
        ("l.txt", "", "no images or shards found"),
    ],
)
def test_damaged_lists_say_where(
    tmp_path: Path, storage: Storage, name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=reason):
        build_manifest(str(tmp_path / name), storage)


def test_utf16_lists_are_refused_by_name(tmp_path: Path, storage: Storage) -> None:
    (tmp_path / "l.txt").write_bytes("a.jpg\n".encode("utf-16"))
    with pytest.raises(InputError, match="UTF-16"):
        build_manifest(str(tmp_path / "l.txt"), storage)


def test_lines_around_the_read_size_are_whole(tmp_path: Path, storage: Storage) -> None:
    lines = [f"/d{'d' * (i % 4000)}/{i}.jpg" for i in range(2000)]
    lines[700] = "y" * 3_000_000
    (tmp_path / "l.txt").write_text("\n".join(lines))
    table = build_manifest(str(tmp_path / "l.txt"), storage, skip_bad_lines=True)
    assert uris(table) == lines[:700] + lines[701:]
    assert summarize(table).num_bad_lines == 1


def test_signatures_are_stripped_and_read_again_when_needed(
    tmp_path: Path, storage: Storage
) -> None:
    path = str(tmp_path / "list.txt")
    Path(path).write_text(f"{SIGNED}\nhttps://h.example/b.jpg\n")
    table = build_manifest(path, storage)
    assert uris(table) == ["https://h.example/a.jpg?v=1", "https://h.example/b.jpg"]
    assert table["is_signed"].to_pylist() == [True, False]
    assert SECRET not in str(table.to_pylist()) + str(table.schema.metadata)
    assert fetch_uris(table, path, storage) == {table["source_id"][0].as_py(): SIGNED}
    assert fetch_uris(table.slice(1), path, storage) == {}
    manifest = str(tmp_path / "m.parquet")
    save_manifest(storage, manifest, table)
    assert SECRET.encode() not in Path(manifest).read_bytes()
    again = build_manifest(manifest, storage)
    assert again["is_signed"].to_pylist() == [True, False]
    with pytest.raises(InputError, match="1 sources had signed URLs"):
        fetch_uris(again, manifest, storage)


@pytest.fixture
def web_list() -> Iterator[str]:
    """URL of a list on a web server that wants a signature."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"a.jpg\nhttps://h.example/b.jpg\n/etc/passwd\n"
            self.send_response(200 if f"sig={SECRET}" in self.path else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/lists/l.txt"
        server.shutdown()
        thread.join()


def test_a_signed_list_and_a_signed_image(web_list: str) -> None:
    storage = Storage(StorageOptions(allow_private_hosts=True))
    signed = f"{web_list}?sig={SECRET}"
    with pytest.raises(InputError, match=r"1 entries are refused.*\n  line 3: .*local file"):
        build_manifest(signed, storage)
    table = build_manifest(signed, storage, skip_bad_lines=True)
    assert uris(table) == [web_list.replace("l.txt", "a.jpg"), "https://h.example/b.jpg"]
    image = build_manifest(SIGNED, storage)
    assert uris(image) == ["https://h.example/a.jpg?v=1"]
    assert fetch_uris(image, SIGNED, storage) == {image["source_id"][0].as_py(): SIGNED}


def test_the_command_leaves_refused_entries_out_where_told_and_says_how_many(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b/c"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{name}.jpg").write_bytes(b"")
    listed, manifest = str(tmp_path / "list.txt"), str(tmp_path / "m.parquet")
    Path(listed).write_text("in/a.jpg\nftp://host/b.jpg\n")
    refused = CliRunner().invoke(main, ["manifest", listed, manifest])
    assert refused.exit_code == 2
    assert "1 entries are refused" in capfd.readouterr().err
    kept = CliRunner().invoke(main, ["manifest", listed, manifest, "--skip-bad-lines"])
    assert kept.exit_code == 0, kept.output
    assert "left out, refused" in kept.output + capfd.readouterr().out
    assert uris(build_manifest(manifest, Storage())) == [f"{tmp_path}/in/a.jpg"]
    flat = CliRunner().invoke(main, ["manifest", str(tmp_path / "in"), manifest, "--no-recursive"])
    assert flat.exit_code == 0, flat.output
    assert uris(build_manifest(manifest, Storage())) == [f"{tmp_path}/in/a.jpg"]
