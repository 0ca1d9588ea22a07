"""The laws of the house, read from the source: who may import whom, and how files look.

Imports run downward only and in no circle, not even under ``TYPE_CHECKING``; Ray and the terminal
each stay in their rooms. Every import statement counts, wherever in a file it stands.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "effnet_batch"
FACE = ""
"""The room of ``effnet_batch/__init__.py``: the public face, which loads names on first use."""

FLOORS = {
    FACE: 6,
    "cli": 6,
    "pipelines": 5,
    "training": 5,
    "submission": 5,
    "preflight": 5,
    "plan": 5,
    "stages": 4,
    "evaluation": 4,
    "report": 4,
    "models": 3,
    "sink": 3,
    "ledger": 3,
    "lock": 3,
    "manifest": 3,
    "shards": 3,
    "layouts": 3,
    "media": 2,
    "storage": 2,
    "config": 2,
    "prefixes": 2,
    "capacity": 2,
    "fingerprint": 2,
    "schema": 1,
    "errors": 1,
    "vocabulary": 1,
}
"""Every room of the package and the floor it stands on; no room imports from a higher floor."""

GROUND = {"schema", "errors", "vocabulary"}
ALLOWED = {
    "stages": GROUND | {"media", "models", "shards", "storage"},
    "evaluation": GROUND | {"storage"},
    "report": GROUND | {"storage"},
    "models": GROUND | {"media", "storage"},
    "sink": GROUND | {"storage"},
    "ledger": GROUND | {"storage", "sink", "prefixes"},
    "lock": GROUND | {"storage"},
    "manifest": GROUND | {"storage", "layouts", "shards", "prefixes"},
    "shards": GROUND | {"storage"},
    "layouts": GROUND | {"storage"},
    "media": GROUND,
    "storage": GROUND | {"config"},
    "config": GROUND,
    "prefixes": GROUND,
    "capacity": set(),
    "fingerprint": GROUND | {"media", "config"},
    "schema": {"vocabulary"},
    "errors": {"vocabulary"},
    "vocabulary": set(),
}
"""What a room may import beside itself. Rooms not named may import anything on lower floors."""

RAY_ROOMS = {"pipelines", "training", "sink", "submission", "preflight", "plan"}
TERMINAL_ROOMS = {"cli"}
WEIGHTS = re.compile(r"\.models\.(weights|weights_file|registry|checkpoints)$")
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
MAX_LINES = 400


@dataclass(frozen=True)
class Import:
    importer: str
    """Dotted name of the importing module, such as ``effnet_batch.models.engine``."""

    target: str
    """Dotted name of the module or name that is imported."""

    place: str
    """``path:line``, for the message."""


def room_of(module: str) -> str:
    """``effnet_batch.models.engine`` → ``models``; ``effnet_batch.cli_console`` → ``cli``."""
    parts = module.split(".")
    if parts[0] != PACKAGE or len(parts) == 1:
        return FACE
    return "cli" if parts[1].startswith(("cli_", "__main__")) else parts[1]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports_of(importer: str, source: str, place: str) -> Iterator[Import]:
    """Yield every import of a module's source; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place}:{node.lineno}: imports are absolute"
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(importer, target, f"{place}:{node.lineno}")


def all_imports(*folders: str) -> list[Import]:
    return [
        found
        for path in source_files(*folders)
        for found in imports_of(
            module_of(path), path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        )
    ]


def target_module(target: str, modules: set[str]) -> str:
    """The module that a dotted name lives in: the longest prefix that is a file of ours."""
    while target not in modules:
        target = target.rpartition(".")[0]
    return target


def broken_laws(imports: list[Import], modules: set[str]) -> list[str]:
    """Return one line for every import that breaks a law."""
    broken = []
    for found in imports:
        top = found.target.split(".")[0]
        room = room_of(found.importer)
        if top == "jobs":
            broken.append(f"{found.place}: nothing imports jobs")
        if top == "ray" and room not in RAY_ROOMS:
            broken.append(f"{found.place}: ray only in {sorted(RAY_ROOMS)}")
        if top in ("click", "rich") and room not in TERMINAL_ROOMS:
            broken.append(f"{found.place}: {top} only in {sorted(TERMINAL_ROOMS)}")
        if top != PACKAGE:
            continue
        target = room_of(target_module(found.target, modules))
        if target == room:
            continue
        if target == FACE:
            if found.target.count(".") > 1:
                broken.append(f"{found.place}: there is no module {found.target}")
            elif room != "cli":
                broken.append(f"{found.place}: only the command line may use the public face")
        elif FLOORS[target] > FLOORS[room] or target not in ALLOWED.get(room, FLOORS):
            broken.append(f"{found.place}: {room} may not import {target}")
        elif (room, target) == ("models", "storage") and not WEIGHTS.search(found.importer):
            broken.append(
                f"{found.place}: in models only weights, registry and checkpoints read storage"
            )
    return broken


def circle(imports: list[Import], modules: set[str]) -> list[str] | None:
    """Return the modules of one import circle, or None."""
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for found in imports:
        # The face is executed first by every import and loads nothing: it closes no circle.
        if found.importer == PACKAGE or found.target.split(".")[0] != PACKAGE:
            continue
        graph[found.importer].add(target_module(found.target, modules) or PACKAGE)
    try:
        graphlib.TopologicalSorter(
            {module: targets - {PACKAGE, module} for module, targets in graph.items()}
        ).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


MODULES = {module_of(path) for path in source_files(PACKAGE)}


def test_every_module_stands_on_a_floor() -> None:
    assert {room_of(module) for module in MODULES} <= set(FLOORS)


def test_imports_run_downward() -> None:
    assert broken_laws(all_imports(PACKAGE), MODULES) == []


def test_imports_run_in_no_circle() -> None:
    assert circle(all_imports(PACKAGE), MODULES) is None


@pytest.mark.parametrize(
    ("importer", "source", "complaint"),
    [
        ("models.engine", "from effnet_batch.storage import Storage", "only weights"),
        ("media.image", "from effnet_batch import storage", "media may not import storage"),
        ("stages.decode", "def f():\n    import ray.data", "ray only in"),
        ("stages.decode", "from effnet_batch.pipelines import embed", "may not import pipelines"),
        ("ledger", "from rich.console import Console", "rich only in"),
        ("sink", "import click", "click only in"),
        ("pipelines.embed", "import jobs.demo", "nothing imports jobs"),
        ("sink", "from effnet_batch import load_model", "public face"),
        ("sink", "from effnet_batch.missing import thing", "there is no module"),
        (
            "storage",
            "if TYPE_CHECKING:\n    from effnet_batch.manifest import build_manifest",
            "storage may not import manifest",
        ),
    ],
)
def test_a_broken_law_is_seen(importer: str, source: str, complaint: str) -> None:
    found = list(imports_of(f"{PACKAGE}.{importer}", source, "here"))
    modules = {PACKAGE} | {f"{PACKAGE}.{room}" for room in FLOORS if room} | {found[0].importer}
    (line,) = broken_laws(found, modules)
    assert complaint in line


def test_a_circle_is_seen() -> None:
    found = [
        *imports_of("effnet_batch.a", "from effnet_batch.b import x", "a"),
        *imports_of("effnet_batch.b", "import effnet_batch.a", "b"),
    ]
    modules = {PACKAGE, "effnet_batch.a", "effnet_batch.b"}
    assert set(circle(found, modules) or ()) == {"effnet_batch.a", "effnet_batch.b"}


def test_no_file_is_a_drawer() -> None:
    names = {path.stem for path in source_files(PACKAGE, "jobs", "benchmarks")}
    assert names & BANNED_NAMES == set()


def test_files_stay_readable() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in source_files(PACKAGE, "jobs", "benchmarks", "tests")
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_the_command_line_starts_light() -> None:
    code = (
        "import sys, effnet_batch, effnet_batch.cli, effnet_batch.cli_console\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'numpy', 'openvino', 's3fs', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (run.stdout.strip(), run.stderr) == ("[]", "")
