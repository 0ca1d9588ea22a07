"""The S3 server of the tests is itself real: it authenticates, counts and comes back."""

import subprocess
import sys
from collections.abc import Callable

import botocore.exceptions
import pytest
import s3fs
from s3_server import S3Server


def test_every_read_stands_once_in_the_access_log(s3: S3Server, s3_prefix: str) -> None:
    prefix = s3_prefix.removeprefix(f"s3://{s3.bucket}/")
    for index in range(50):
        s3.put(f"{prefix}{index}", bytes(100))
    mark = s3.access_log.mark()
    assert s3.access_log.gets(since=mark) == {}

    files = s3fs.S3FileSystem()
    for index in range(50):
        files.cat_file(f"{s3_prefix}{index}")
    files.cat_file(f"{s3_prefix}7", start=0, end=10)
    files.find(s3_prefix)

    expected = {f"{prefix}{index}": 1 for index in range(50)} | {f"{prefix}7": 2}
    assert s3.access_log.gets(since=mark) == expected
    assert 206 in {each.status for each in s3.access_log.since(mark) if each.key == f"{prefix}7"}


def test_wrong_keys_and_readers_are_refused(
    s3: S3Server, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs.S3FileSystem().pipe_file(f"{s3_prefix}a", b"written")
    s3.client_env(monkeypatch, AWS_SECRET_ACCESS_KEY="wrong")
    with pytest.raises(PermissionError):
        s3fs.S3FileSystem().cat_file(f"{s3_prefix}a")
    s3.client_env(monkeypatch, **s3.reader_env)
    assert s3fs.S3FileSystem().cat_file(f"{s3_prefix}a") == b"written"
    with pytest.raises(PermissionError):
        s3fs.S3FileSystem().pipe_file(f"{s3_prefix}b", b"refused")


def test_conditional_writes_hold(s3: S3Server, s3_prefix: str) -> None:
    key = s3_prefix.removeprefix(f"s3://{s3.bucket}/") + "lock"
    client = s3.client()
    etag = client.put_object(Bucket=s3.bucket, Key=key, Body=b"1", IfNoneMatch="*")["ETag"]
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=s3.bucket, Key=key, Body=b"2", IfNoneMatch="*")
    client.put_object(Bucket=s3.bucket, Key=key, Body=b"3", IfMatch=etag)
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=s3.bucket, Key=key, Body=b"4", IfMatch=etag)
    assert s3.get(key) == b"3"


def test_a_server_of_ones_own_stops_and_comes_back(start_s3: Callable[[], S3Server]) -> None:
    server = start_s3()
    server.put("kept", b"data")
    endpoint = server.endpoint_url
    server.stop()
    with pytest.raises(botocore.exceptions.EndpointConnectionError):
        server.get("kept")
    server.start()
    assert server.endpoint_url == endpoint
    assert server.get("kept") == b"data"


def test_no_variable_of_the_developer_reaches_a_test() -> None:
    code = "import os; print([n for n in os.environ if n.startswith(('AWS_ACC', 'RAY_ADD'))])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert output.decode().strip() == "[]"
