"""Flags made from the configuration, so that a setting is declared once."""

import dataclasses
import functools
import tomllib
from collections.abc import Callable
from typing import Any

import click

from effnet_batch.config import (
    EmbedConfig,
    EvaluateConfig,
    FinetuneConfig,
    JobConfig,
    ManifestConfig,
    RescoreConfig,
    ScoreConfig,
    StorageSettings,
    load_toml,
)
from effnet_batch.errors import ConfigError

CONFIGS: dict[str, type[JobConfig]] = {
    "embed": EmbedConfig,
    "evaluate": EvaluateConfig,
    "finetune": FinetuneConfig,
    "manifest": ManifestConfig,
    "rescore": RescoreConfig,
    "score": ScoreConfig,
}

_PLACES = ("input", "output")
"""Arguments of commands that a file of settings may name too; no setting is called like them."""


def config_options(
    job: str, *, optional: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds a flag per setting of a job, and ``--config FILE.toml``.

    The command gets ``settings``: the file's values with the given flags laid over them. Its
    ``input`` and ``output`` may stand in the file instead; the one called as ``optional`` may be
    missing, which is None.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        fields = CONFIGS[job].settings()

        @functools.wraps(function)
        def run(**kwargs: Any) -> Any:
            path = kwargs.pop("config")
            given = {
                name: value for name in fields if (value := kwargs.pop(name)) not in (None, ())
            }
            try:
                settings = {**(load_toml(path, job) if path else {}), **given}
            except ConfigError as error:
                raise click.UsageError(str(error)) from error
            for name in _PLACES:
                if name in kwargs:
                    in_file = settings.pop(name, None)
                    place = kwargs[name] or in_file
                    if place is not None or name != optional:
                        kwargs[name] = _place(name, place)
            return function(settings=settings, **kwargs)

        decorated: Callable[..., Any] = run
        for name, (_, field) in reversed(fields.items()):
            decorated = _option(name, field)(decorated)
        return click.option("--config", metavar="FILE.toml", help="Settings from a file.")(
            decorated
        )

    return decorate


def _place(name: str, place: object) -> str:
    """Checks INPUT or OUTPUT, which come from the command line or else from the file."""
    if not isinstance(place, str) or not place:
        raise click.UsageError(
            f'{name.upper()} is missing; name it on the command line, or as {name} = "..." in the '
            f"file of --config"
        )
    return place


changes_option = click.option(
    "--set", "changes", metavar="KEY=VALUE", multiple=True, help="Setting that wins over the file."
)


def parse_change(change: str) -> tuple[str, Any]:
    """Splits ``key=value``; the value is TOML, or a text that needs no quotes."""
    key, separator, text = change.partition("=")
    if not separator or not key.isidentifier():
        raise click.UsageError(f"--set takes KEY=VALUE, got {change!r}")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text


def storage_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the storage settings to a command, which gets those given as ``storage``."""
    fields = dataclasses.fields(StorageSettings)

    @functools.wraps(function)
    def run(**kwargs: Any) -> Any:
        given = {
            field.name: value for field in fields if (value := kwargs.pop(field.name)) is not None
        }
        return function(storage=given, **kwargs)

    decorated: Callable[..., Any] = run
    for field in reversed(fields):
        decorated = _option(field.name, field)(decorated)
    return decorated


def _option(name: str, field: dataclasses.Field[Any]) -> Callable[..., Any]:
    flag = "--" + name.replace("_", "-")
    text = field.metadata["help"]
    default = field.default
    if default not in (None, False, ()):
        text = f"{text}  [default: {default}]"
    kind = str(field.type)
    if field.type is bool or kind == "bool":
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=text)
    if choices := field.metadata["choices"]:
        return click.option(flag, type=click.Choice(choices), help=text)
    if "tuple[str" in kind:
        return click.option(flag, multiple=True, help=text)
    if "tuple" in kind:
        return click.option(flag, type=float, nargs=3, help=text)
    if "int" in kind:
        return click.option(flag, type=int, help=text)
    if "float" in kind:
        return click.option(flag, type=float, help=text)
    return click.option(flag, help=text)
