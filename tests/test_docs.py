"""The documentation's commands: every one parses, and those on local files run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from effnet_batch.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def named_commands(group: click.Group = main, prefix: str = "") -> dict[str, click.Command]:
    """Return every command by its whole name, such as ``cluster submit``."""
    found = {}
    for name, command in group.commands.items():
        found[f"{prefix}{name}"] = command
        if isinstance(command, click.Group):
            found |= named_commands(command, f"{prefix}{name} ")
    return found


def commands() -> list[str]:
    lines = [
        line.split("  #")[0].strip()
        for path in DOCUMENTS
        for block in code_blocks(path, "bash")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    for command in named_commands().values():
        lines += [line.strip() for line in (command.help or "").splitlines()]
    return sorted({line for line in lines if line.startswith("effnet-batch ")})


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_parses(line):
    command, (_, *arguments) = main, shlex.split(line)
    while isinstance(command, click.Group):
        name, *arguments = arguments
        assert name in command.commands, line
        command = command.commands[name]
    command.make_context(name, arguments)  # raises on an unknown flag or value


def test_every_command_is_in_the_readme_and_its_help_shows_an_example():
    readme = (ROOT / "README.md").read_text()
    for name, command in named_commands().items():
        if " " not in name:
            assert f"**{name}**" in readme, f"README.md does not describe {name}"
        else:
            assert f"effnet-batch {name}" in readme, f"README.md does not show {name}"
        assert f"effnet-batch {name}" in (command.help or ""), f"{name} --help has no example"
        first_line = (command.help or "").splitlines()[0]
        assert first_line.endswith("."), f"{name} --help does not begin with a sentence"


def test_every_flag_says_what_it_does():
    for name, command in named_commands().items():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts[0]} has no help"


def test_make_has_the_targets_that_the_documents_name():
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    for target in set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


def test_links_to_files_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links {target}"


def test_the_readme_runs_on_local_photographs(tmp_path, photos):
    (tmp_path / "photos").symlink_to(photos)
    erased = tmp_path / "photos" / min(photos.iterdir()).name
    (tmp_path / "deletion-requests.txt").write_text(f"{erased}\n")
    block = code_blocks(ROOT / "README.md", "python")[0]
    start = next(one for one in code_blocks(ROOT / "README.md", "bash") if "pip install" in one)
    shell = [line for line in start.splitlines() if line.startswith("effnet-batch")]
    shell += [
        "effnet-batch status embeddings/",
        "effnet-batch verify embeddings/ --deep",
        "effnet-batch compact embeddings/",
        "effnet-batch forget embeddings/ --uri-list deletion-requests.txt",
        "effnet-batch verify embeddings/",
    ]
    documented = commands()
    for line in shell:
        assert line in documented
        executable = Path(sys.executable).parent / "effnet-batch"
        done = subprocess.run(
            [executable, *shlex.split(line)[1:]], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        if "forget" in line:
            assert re.search(r"sources erased +1\n", done.stdout)
    code = block.replace('"embeddings/"', '"more/"') + "\nprint(vectors.shape, len(table))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    number = len(list(photos.iterdir()))
    assert done.stdout.splitlines()[-1] == f"({number}, 1280) {number}"
