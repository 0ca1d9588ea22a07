"""Names of objects: one canonical spelling each, no secret in any of them.

Local paths are plain absolute paths (``/data/a.jpg``); one whose name is not UTF-8 is a ``file:``
URI with percent-encoded bytes, so that it survives Arrow, JSON and hashing. Everything else is
``scheme://…``. Keys of S3 are taken literally: ``#``, ``?``, ``%``, ``//`` and ``..`` are ordinary
characters there, and only HTTP has a query string.
"""

import os
import re
from typing import Final
from urllib.parse import quote, unquote_to_bytes, urlsplit

from effnet_batch.errors import ConfigError

LOCAL: Final = "file"
S3: Final = "s3"
WEB_SCHEMES: Final = ("http", "https")
AZURE_SCHEMES: Final = ("az", "abfs", "abfss")
REMOTE_SCHEMES: Final = (S3, "gs", *AZURE_SCHEMES, "hf", *WEB_SCHEMES)

_ALIASES = {"s3a": S3, "s3n": S3, "gcs": "gs"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_CHAIN = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]*::|::[A-Za-z][A-Za-z0-9+.\-]*:/")

# Parameters of presigned URLs and tokens. The second and third groups have everyday names, so they
# count only next to the parameter that makes them a signature.
_SIGNATURE = re.compile(
    r"(x-amz|x-goog|x-oss)-.*|signature|sig|key-pair-id|(aws|oss)accesskeyid|googleaccessid"
    r"|(access_|auth_)?token|api_?key|password|secret"
)
_SIGNED = ("signature", "key-pair-id")
_WITH_SIGNATURE = re.compile(r"expires|policy|security-token|hash-algorithm")
_WITH_SAS = re.compile(
    r"s[eprtvsi]|spr|sip|srt|sdd|sk(oid|tid|t|e|s|v)|saoid|suoid|scid|ses|rsc[cdelt]"
)
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://([^/\s@'\"<>]+)@")
_PARAMETER = re.compile(r"([?&;])([^=&?\s'\"<>]+)=([^&\s'\"<>]+)")
_ACCOUNT_KEY = re.compile(r"(AccountKey|SharedAccessSignature)=[^;\s'\"]+", re.IGNORECASE)
_AUTHORIZATION = re.compile(
    r"\b(?:(Bearer|Basic) +[A-Za-z0-9+/=._~\-]{12,}|(AWS4-HMAC-SHA256) +Credential=[^\n'\"]+)"
)
_SECRET_VARIABLE = re.compile(
    r"(_TOKEN|_SECRET|_PASSWORD|SECRET_ACCESS_KEY|_API_KEY)$|^AZURE_.*KEY$"
    r"|^AZURE_.*CONNECTION_STRING$"
)
_MIN_SECRET_CHARS = 6
_HIDDEN = "***"


def scheme_of(uri: str) -> str:
    """Returns the scheme of a canonical URI; ``file`` for a local path."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else LOCAL


def canonical_uri(text: str, *, base: str | None = None) -> str:
    """Returns the one spelling of an object's name from which its ids are made.

    Local paths become absolute with ``~``, ``.`` and ``..`` resolved but symlinks kept. Signature
    parameters of presigned HTTP URLs are dropped; see :func:`split_signature`.

    Args:
        text: path or URI. A path may hold bytes that are not UTF-8 as surrogates, as
            :func:`os.fsdecode` gives them.
        base: folder, local or remote, that a relative ``text`` is relative to; the working
            directory by default.

    Raises:
        ConfigError: an unknown scheme, a ``::`` chain, user information in the URI, or a name
            that no storage can hold.
    """
    if not text or "\0" in text:
        raise ConfigError(f"got {text!r} where a path or URI is needed")
    if _CHAIN.search(text):
        raise ConfigError(
            f"{redact(text)!r} chains URLs with '::', which is not supported; name the object "
            "itself and let its kind (tar, zip, parquet) be recognised"
        )
    match = _SCHEME.match(text)
    if match is None and not text.lower().startswith("file:"):
        if base is not None and not text.startswith("/") and scheme_of(base) != LOCAL:
            return _relative_to_remote(text, base)
        if base is None:
            # Shells do it for arguments only, and not behind "=" or in quotes.
            return _local_uri(os.path.join(os.getcwd(), os.path.expanduser(text)))
        folder = local_path(base)
        return _local_uri(os.path.join(folder, text))
    if match is None or match[1].lower() == LOCAL:
        return _local_uri(_path_of_file_uri(text))
    scheme = _ALIASES.get(match[1].lower(), match[1].lower())
    if scheme not in REMOTE_SCHEMES:
        raise ConfigError(
            f"{redact(text)!r} has the scheme {match[1]!r}; known are local paths, "
            f"{', '.join(each + '://' for each in REMOTE_SCHEMES)}"
        )
    rest = text[match.end() :]
    authority = re.split(r"[/?#]" if scheme in WEB_SCHEMES else "/", rest, maxsplit=1)[0]
    if "@" in authority:
        raise ConfigError(_userinfo_message(text, scheme))
    if not authority:
        what = "host" if scheme in WEB_SCHEMES else "bucket"
        raise ConfigError(f"{redact(text)!r} names no {what}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{redact(ascii(text))} is not UTF-8, which remote names must be"
        ) from None
    if scheme in WEB_SCHEMES:
        return split_signature(f"{scheme}://{rest}")[0]
    return f"{scheme}://{rest}"


def _userinfo_message(text: str, scheme: str) -> str:
    if scheme in AZURE_SCHEMES:
        return (
            f"{redact(text)!r} names an account; set AZURE_STORAGE_ACCOUNT_NAME instead and write "
            f"{scheme}://container/path"
        )
    return (
        f"{redact(text)!r} holds user information before '@'; take it out of the URI and give "
        "credentials in the environment or in a profile"
    )


def _relative_to_remote(text: str, base: str) -> str:
    if ".." in text.split("/"):
        raise ConfigError(f"{text!r} leaves {redact(base)!r}; give the full URI instead")
    return canonical_uri(join(base, text))


def _path_of_file_uri(text: str) -> str:
    rest = text[len("file:") :]
    if rest.startswith("//"):
        host, _, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise ConfigError(f"{redact(text)!r} names the host {host!r}; write file:///path")
        rest = f"/{path}"
    path = os.fsdecode(unquote_to_bytes(rest))
    if "\0" in path:
        raise ConfigError(f"{text!r} holds a NUL byte")
    return path


def _local_uri(path: str) -> str:
    # normpath keeps two leading slashes, as POSIX lets them mean something; on Linux they do not.
    path = re.sub("^//+", "/", os.path.abspath(path))
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


def local_path(uri: str) -> str:
    """Returns the path for the operating system of a canonical local URI."""
    return os.fsdecode(unquote_to_bytes(uri[len("file://") :])) if uri.startswith("file:") else uri


def split_signature(url: str) -> tuple[str, bool]:
    """Returns an HTTP URL without its signature parameters, and whether it had any.

    Host and scheme are lowered, default port and fragment dropped; other parameters keep their
    order. URLs of other schemes come back as they are: there ``?`` belongs to the key.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in WEB_SCHEMES:
        return url, False
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{redact(url)!r} is not a URL: {error}") from None
    if not host:
        raise ConfigError(f"{redact(url)!r} names no host")
    host = f"[{host}]" if ":" in host else host
    if port is not None and port != (443 if scheme == "https" else 80):
        host = f"{host}:{port}"
    parameters = parts.query.split("&") if parts.query else []
    names = frozenset(_name(each) for each in parameters)
    kept = [each for each in parameters if not _is_signature(_name(each), names)]
    query = f"?{'&'.join(kept)}" if kept else ""
    return f"{scheme}://{host}{parts.path or '/'}{query}", len(kept) < len(parameters)


def _name(parameter: str) -> str:
    return unquote_to_bytes(parameter.partition("=")[0]).decode(errors="replace").lower()


def _is_signature(name: str, names: frozenset[str]) -> bool:
    return (
        _SIGNATURE.fullmatch(name) is not None
        or (not names.isdisjoint(_SIGNED) and _WITH_SIGNATURE.fullmatch(name) is not None)
        or ("sig" in names and _WITH_SAS.fullmatch(name) is not None)
    )


def join(uri: str, *names: str) -> str:
    """Returns the URI of ``names`` below ``uri``, with one slash in between each."""
    if uri.startswith("file:"):
        names = tuple(quote(os.fsencode(name)) for name in names)
    joined = "/".join((uri.rstrip("/"), *(name.strip("/") for name in names)))
    return joined or "/"


def redact(text: str) -> str:
    """Returns a message without user information, signatures, and secrets of the environment."""
    text = _USERINFO.sub(rf"\1://{_HIDDEN}@", text)
    if "=" in text:
        text = _PARAMETER.sub(_hide_parameter, text)
        text = _ACCOUNT_KEY.sub(rf"\1={_HIDDEN}", text)
    text = _AUTHORIZATION.sub(lambda match: f"{match[1] or match[2]} {_HIDDEN}", text)
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET_CHARS and _SECRET_VARIABLE.search(name.upper()):
            text = text.replace(value, _HIDDEN).replace(quote(value, safe=""), _HIDDEN)
    return text


def _hide_parameter(match: re.Match[str]) -> str:
    # Whole sets of parameters are not seen here, so the everyday names are left as they are: they
    # say when a signature ends, not what it is.
    if _is_signature(_name(match[2]), frozenset()):
        return f"{match[1]}{match[2]}={_HIDDEN}"
    return match[0]
