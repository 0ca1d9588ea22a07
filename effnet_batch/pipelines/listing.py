"""A manifest on its own: list an input once, embed it as often as wanted."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from effnet_batch.config import ManifestConfig
from effnet_batch.manifest import build_manifest, check_savable, save_manifest, summarize
from effnet_batch.pipelines.label_check import LabelledFile, LabelReport, check_labels
from effnet_batch.pipelines.run import storage_options
from effnet_batch.storage import Storage, canonical_uri


def list_input(input: str, manifest: str, settings: Mapping[str, Any]) -> dict[str, object]:
    """Lists an input into one Parquet file.

    Args:
        input: folder, glob, list or shard; local or remote.
        manifest: where the file goes, local or remote; ends in ``.parquet``.
        settings: flat settings of `config.ManifestConfig`.

    Returns:
        Counts for people, by name.

    Raises:
        ConfigError: wrong settings, or the input cannot be listed.
    """
    config = ManifestConfig.from_flat(dict(settings))
    room = Storage(storage_options(config))
    target = canonical_uri(manifest)
    check_savable(room, target)
    sources = build_manifest(
        input, room, medium=config.medium.medium, **dataclasses.asdict(config.input)
    )
    save_manifest(room, target, sources)
    found = summarize(sources)
    return {
        "medium": found.medium,
        "sources": found.num_sources,
        **{f"  {kind}": count for kind, count in found.num_by_kind.items()},
        **{f"left out, {name}": n for name, n in found.num_skipped_by_extension.items()},
        **({"left out, refused": found.num_bad_lines} if found.num_bad_lines else {}),
    }


def check_listed(
    manifest: str, settings: Mapping[str, Any], *, reads_contents: bool
) -> LabelReport:
    """Looks for what is wrong with labels, groups and splits of a file of `list_input`.

    Args:
        manifest: the file.
        settings: that it was listed with.
        reads_contents: as `label_check.check_labels`.

    Raises:
        ConfigError: it cannot be read.
        FetchError: a source cannot be looked at now.
    """
    config = ManifestConfig.from_flat(dict(settings))
    room = Storage(storage_options(config))
    sources = build_manifest(manifest, room, medium=config.medium.medium)
    names = [field.name for field in dataclasses.fields(LabelledFile)]
    files = (
        LabelledFile(**row)
        for table in sources.tables()
        # The URL of a signed source is not kept, so nobody can look at it again.
        for row in table.filter(pc.invert(table["is_signed"])).select(names).to_pylist()
    )
    return check_labels(files, room, reads_contents=reads_contents)
