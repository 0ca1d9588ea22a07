"""A manifest on its own: list an input once, embed it as often as wanted."""

from collections.abc import Mapping
from typing import Any

from effnet_batch.config import ManifestConfig
from effnet_batch.manifest import build_manifest, check_savable, save_manifest, summarize
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
        input,
        room,
        medium=config.medium.medium,
        kind=config.input.kind,
        media_column=config.input.media_column,
        label_from=config.input.label_from,
        limit=config.input.limit,
        sample=config.input.sample,
        seed=config.input.seed,
    )
    save_manifest(room, target, sources)
    found = summarize(sources)
    return {
        "medium": found.medium,
        "sources": found.num_sources,
        **{f"  {kind}": count for kind, count in found.num_by_kind.items()},
        **{f"left out, {name}": n for name, n in found.num_skipped_by_extension.items()},
    }
