import os

import pytest
from hypothesis import given, strategies as st

from effnet_batch.errors import ConfigError
from effnet_batch.storage import (
    canonical_uri,
    join,
    local_path,
    redact,
    scheme_of,
    split_signature,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a/./b/../c.jpg", "/a/c.jpg"),
        ("//a//b.jpg", "/a/b.jpg"),
        ("file:///a/b%20c.jpg", "/a/b c.jpg"),
        ("file:/a/b.jpg", "/a/b.jpg"),
        ("file://localhost/a.jpg", "/a.jpg"),
        ("file:///a/%FF.jpg", "file:///a/%FF.jpg"),
        ("/a/100%.jpg", "/a/100%.jpg"),
        ("/a/b::c.jpg", "/a/b::c.jpg"),
        ("S3://Bucket/Key", "s3://Bucket/Key"),
        ("s3a://b/k", "s3://b/k"),
        ("s3://b/a//b/../c d#?%25+&é.jpg", "s3://b/a//b/../c d#?%25+&é.jpg"),
        ("s3://b/who@where.jpg", "s3://b/who@where.jpg"),
        ("gcs://b/k", "gs://b/k"),
        ("abfs://container/k", "abfs://container/k"),
        ("HTTPS://Host.Example:443/A?b=1#part", "https://host.example/A?b=1"),
        ("http://host:8080", "http://host:8080/"),
        ("http://[::1]:80/x", "http://[::1]/x"),
    ],
)
def test_canonical_uri(text: str, expected: str) -> None:
    assert canonical_uri(text) == expected
    assert canonical_uri(expected) == expected


def test_relative_names_start_from_the_base() -> None:
    assert canonical_uri("b/../c.jpg", base="/lists") == "/lists/c.jpg"
    assert canonical_uri("c.jpg") == f"{os.getcwd()}/c.jpg"
    assert canonical_uri("b/c d.jpg", base="s3://bucket/lists/") == "s3://bucket/lists/b/c d.jpg"
    with pytest.raises(ConfigError, match="leaves"):
        canonical_uri("../c.jpg", base="s3://bucket/lists")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needed"),
        ("/a\0b", "needed"),
        ("file:///a%00b", "NUL"),
        ("ftp://host/a", "scheme"),
        ("memory://a", "scheme"),
        ("zip://a.jpg::s3://b/x.zip", "chains"),
        ("simplecache::s3://b/k", "chains"),
        ("s3://b/x.zip::file:///etc/passwd", "chains"),
        ("s3://key:hush-hush@b/k", "user information"),
        ("https://hush-hush@host/k", "user information"),
        ("abfs://hush-hush@account/k", "AZURE_STORAGE_ACCOUNT_NAME"),
        ("s3:///k", "bucket"),
        ("https:///k", "host"),
        ("http://host:port/", "not a URL"),
        ("file://server/share", "host"),
        ("s3://b/\udcff.jpg", "UTF-8"),
    ],
)
def test_names_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        canonical_uri(text)
    assert "hush" not in str(caught.value)


def test_a_name_that_is_not_utf8_keeps_its_bytes() -> None:
    path = os.fsdecode(b"/a/\xff%\xc3\xa9.jpg")
    uri = canonical_uri(path)
    assert uri == "file:///a/%FF%25%C3%A9.jpg"
    assert local_path(uri) == path
    assert scheme_of(uri) == scheme_of("/a/b") == "file"
    assert join(canonical_uri(os.fsdecode(b"/\xff")), "100%.jpg") == "file:///%FF/100%25.jpg"


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name))
def test_every_local_name_survives(name: bytes) -> None:
    path = os.path.abspath(os.path.join("/top", os.fsdecode(name).lstrip("/") or "x"))
    uri = canonical_uri(path)
    assert os.fsencode(local_path(uri)) == os.fsencode(path)
    assert canonical_uri(uri) == uri
    uri.encode()


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert canonical_uri("~/a.jpg") == "/home/somebody/a.jpg"
    assert canonical_uri("~") == "/home/somebody"
    assert canonical_uri("a/~/b") == f"{os.getcwd()}/a/~/b"
    # In a list it is a name like any other, as it would be on somebody else's machine.
    assert canonical_uri("~/a.jpg", base="/lists") == "/lists/~/a.jpg"
    assert canonical_uri("s3://b/~/a.jpg") == "s3://b/~/a.jpg"


SIGNED = [
    "https://h/a.jpg?X-Amz-Algorithm=A&X-Amz-Credential=C&X-Amz-Expires=9&X-Amz-Signature=hush",
    "https://h/a.jpg?X-Amz-Security-Token=hush&X-Amz-SignedHeaders=host&X-Amz-Signature=hush",
    "https://h/a.jpg?AWSAccessKeyId=AK&Expires=1&Signature=hush%3D",
    "https://h/a.jpg?GoogleAccessId=me&Expires=1&Signature=hush",
    "https://h/a.jpg?X-Goog-Signature=hush&x-goog-date=1",
    "https://h/a.jpg?sv=2024&sr=b&sp=r&st=1&se=2&spr=https&sig=hush",
    "https://h/a.jpg?skoid=o&sktid=t&skt=1&ske=2&sks=b&skv=v&sig=hush",
    "https://h/a.jpg?Policy=p&Signature=hush&Key-Pair-Id=K",
    "https://h/a.jpg?token=hush",
    "https://h/a.jpg?access_token=hush",
]


@pytest.mark.parametrize("url", SIGNED)
def test_signatures_are_split_off(url: str) -> None:
    assert split_signature(url) == ("https://h/a.jpg", True)
    assert canonical_uri(url) == "https://h/a.jpg"
    assert "hush" not in redact(f"cannot read {url} now")


def test_other_parameters_stay() -> None:
    url = "https://h/a.jpg?st=1&id=%41&se=2&expires=3&policy=x"
    assert split_signature(url) == (url, False)
    assert split_signature(f"{url}&sig=x") == ("https://h/a.jpg?id=%41&expires=3&policy=x", True)
    assert split_signature("s3://b/k?sig=x") == ("s3://b/k?sig=x", False)


def test_join() -> None:
    assert join("s3://b/out/", "data", "part 1.parquet") == "s3://b/out/data/part 1.parquet"
    assert join("/out", "/run.json") == "/out/run.json"
    assert join("/", "a") == "/a"


def test_redact(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "MY_SECRET",
    ):
        monkeypatch.setenv(name, f"sentinel/{name}+1")
        assert "sentinel" not in redact(f"bad key sentinel/{name}+1, again sentinel%2F{name}%2B1")
    assert redact("https://me:hush@host/a and s3://b/k@2x.jpg") == (
        "https://***@host/a and s3://b/k@2x.jpg"
    )
    assert redact("AccountName=a;AccountKey=hush==;x") == "AccountName=a;AccountKey=***;x"
    assert redact("Authorization: Bearer abcdefghijklmnop") == "Authorization: Bearer ***"
    assert redact("plain words, a=b, c?d=e") == "plain words, a=b, c?d=e"
