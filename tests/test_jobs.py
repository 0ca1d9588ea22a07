"""The jobs and their settings files, each of which documents every setting of its job."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from effnet_batch.cli_options import config_options
from effnet_batch.config import (
    EmbedConfig,
    EvaluateConfig,
    FinetuneConfig,
    RescoreConfig,
    ScoreConfig,
)

ROOT = Path(__file__).parents[1]
JOBS = {
    "embed_images": ("embed", EmbedConfig),
    "score_videos": ("score", ScoreConfig),
    "rescore": ("rescore", RescoreConfig),
    "finetune": ("finetune", FinetuneConfig),
    "evaluate": ("evaluate", EvaluateConfig),
}
LINE = re.compile(r"^#?(?P<name>\w+) = (?P<value>.*?)(?P<example>  # example)?$")


def documented(text: str) -> dict[str, tuple[str, str, bool]]:
    """Return setting -> (the comment above it, its line uncommented, whether it is an example)."""
    found, comment = {}, []
    for line in text.splitlines():
        if match := LINE.match(line):
            assert match["name"] not in found, f"{match['name']} stands twice"
            code = f"{match['name']} = {match['value']}"
            found[match["name"]] = (" ".join(comment), code, bool(match["example"]))
            comment = []
        elif line.startswith("# "):
            comment.append(line[2:])
        else:
            assert not line.strip("#"), line
            comment = []
    return found


def parsed(job: str, *arguments: str) -> dict[str, Any]:
    """Return what a command of the job would be called with."""

    @click.command()
    @click.argument("input", required=False)
    @click.argument("output", required=False)
    @config_options(job)
    def command(**kwargs):
        return kwargs

    return command.main(arguments, standalone_mode=False)


@pytest.mark.parametrize("name", JOBS)
def test_a_settings_file_documents_every_setting(name, tmp_path):
    job, config = JOBS[name]
    settings = config.settings()
    text = (ROOT / "jobs" / f"{name}.toml").read_text()
    lines = documented(text)
    assert list(lines) == ["job", "input", "output", *settings]
    assert lines["job"][1] == f'job = "{job}"'

    path = tmp_path / "all.toml"
    path.write_text("\n".join(code for _, code, _ in lines.values()))
    flat = config.from_flat(parsed(job, "--config", str(path))["settings"]).to_flat()
    for setting, (_, field) in settings.items():
        comment, _, is_example = lines[setting]
        assert field.metadata["help"] in comment, setting
        assert all(choice in comment for choice in field.metadata["choices"]), setting
        if field.default in (None, ()):
            # An example is commented out, or the file would change what the job does.
            assert is_example == (f"\n#{setting} = " in text), setting
        else:
            assert (flat[setting], is_example) == (field.default, False), setting


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_its_command(name):
    path = ROOT / "jobs" / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 40
    done = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert f" {JOBS[name][0]} [OPTIONS]" in done.stderr
    assert "INPUT is missing" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "places"),
    [
        ([], ("in", "out")),
        (["other"], ("other", "out")),
        (["other", "elsewhere"], ("other", "elsewhere")),
    ],
)
def test_input_and_output_may_stand_in_the_file(tmp_path, arguments, places):
    path = tmp_path / "job.toml"
    path.write_text('input = "in"\noutput = "out"\ntop_k = 3\n')
    found = parsed("embed", *arguments, "--config", str(path), "--top-k", "5")
    assert (found["input"], found["output"], found["settings"]) == (*places, {"top_k": 5})


def test_a_file_of_another_job_is_refused():
    path = str(ROOT / "jobs" / "finetune.toml")
    with pytest.raises(click.UsageError, match=r"holds settings of finetune, not of embed"):
        parsed("embed", "--config", path)


@pytest.mark.parametrize("output", ["", "output = 3"])
def test_a_missing_place_is_named(tmp_path, output):
    path = tmp_path / "job.toml"
    path.write_text(f'input = "in"\n{output}\n')
    with pytest.raises(click.UsageError, match="OUTPUT is missing"):
        parsed("embed", "--config", str(path))
