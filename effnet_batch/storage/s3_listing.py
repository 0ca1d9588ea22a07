"""The XML that S3 answers a listing with."""

from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from effnet_batch.storage.objects import ObjectInfo


@dataclass(frozen=True, slots=True)
class Listing:
    """One answer of ListObjectsV2 in ``encoding-type=url``; see :func:`parse_listing`."""

    root: ElementTree.Element
    """Its tags are without their namespace, which not all servers send."""

    @property
    def next_token(self) -> str | None:
        """Continuation token of the next page; None on the last."""
        return _text(self.root, "NextContinuationToken") or None

    @property
    def is_empty(self) -> bool:
        """Whether not even the marker of a folder was found."""
        return self.root.find("Contents") is None

    def objects(self, bucket: str) -> list[ObjectInfo]:
        """Returns what was found, without the empty objects that some tools make of folders."""
        found = []
        for element in self.root.iterfind("Contents"):
            key = unquote_plus(_text(element, "Key") or "")
            size = _text(element, "Size")
            if key.endswith("/") and size == "0":
                continue
            modified = _text(element, "LastModified")
            found.append(
                ObjectInfo(
                    f"s3://{bucket}/{key}",
                    int(size) if size else None,
                    unquoted(_text(element, "ETag") or "") or None,
                    datetime.fromisoformat(modified).astimezone(UTC) if modified else None,
                )
            )
        return found


def parse_listing(data: bytes) -> Listing:
    """Parses an answer.

    Raises:
        xml.etree.ElementTree.ParseError: it is not XML.
    """
    root = ElementTree.fromstring(data)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return Listing(root)


def unquoted(etag: str) -> str:
    """Returns an etag without the quotes that HTTP puts around it."""
    return etag.strip('"')


def _text(element: ElementTree.Element, path: str) -> str | None:
    found = element.find(path)
    return found.text if found is not None else None
