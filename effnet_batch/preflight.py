"""Checks on a cluster before work starts: nodes that answer say within half a minute what is wrong.

Every node that may work reads a nonce that the driver wrote to the output, and answers it; it reads
a source, loads the weights and names its versions. On this machine alone nothing of it is needed.
"""

import concurrent.futures
import dataclasses
import hashlib
import importlib.metadata
import platform
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from effnet_batch.errors import ConfigError, EffnetBatchError, FetchError, StorageError
from effnet_batch.sink import OutputPaths
from effnet_batch.storage import Storage, join, redact, scheme_of
from effnet_batch.storage.uris import LOCAL, WEB_SCHEMES

_STORAGE_SECONDS: Final = 10.0
"""Longer is no answer of a node's storage."""
_SLOW_SECONDS: Final = 15.0
"""After so long it is said which nodes are waited for."""
_ANSWER_SECONDS: Final = 120.0
"""Longer is no start of a worker, even on a node that is far too busy, with weights to fetch."""
_MAX_LINES: Final = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Errand:
    """What a node is asked to do."""

    storage: Storage
    output: str
    """Root of the output."""
    stem: str
    """What the names of the nonce, ``{stem}-nonce``, and of the nodes' answers begin with."""
    nonce: bytes
    source: str | None
    """URI of a source to read; None where that shows nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a node found."""

    versions: dict[str, str]
    problem: EffnetBatchError | None


def check_resources(nodes: Sequence[tuple[float, float]], *, needs_gpu: bool) -> None:
    """Checks that some node can take a task of one CPU, and of one GPU where that is asked for.

    Args:
        nodes: CPUs and GPUs of every node.
        needs_gpu: the model runs on GPUs.

    Raises:
        ConfigError: none can, so that Ray would wait for ever; the message lists the nodes.
    """
    if any(cpus >= 1 and gpus >= needs_gpu for cpus, gpus in nodes):
        return
    listed = ", ".join(f"{cpus:g} CPUs and {gpus:g} GPUs" for cpus, gpus in nodes) or "none"
    wanted = "a CPU and a GPU" if needs_gpu else "a CPU"
    raise ConfigError(f"no node of the cluster has {wanted} (nodes: {listed}); add nodes that have")


def check_nodes(
    output: str,
    source: str | None,
    storage: Storage,
    load: Callable[[], object],
    say: Callable[[str], None],
) -> None:
    """Lets every node that has CPUs or GPUs do what its workers will have to do.

    Args:
        output: root of the output, which the driver can write.
        source: URI of a source, which the driver can read; None if there is none.
        storage: how both are reached.
        load: loads the weights; is sent to the nodes.
        say: is told which nodes are slow to answer, long before they are given up.

    Raises:
        StorageError: a node cannot read or write the output, or read the source.
        ConfigError: a node has other versions, cannot read the weights, or does not answer.
    """
    if source is not None and scheme_of(source) in WEB_SCHEMES:
        source = None  # one dead host among many is a record
    stem = join(OutputPaths(output).tmp, f"preflight-{secrets.token_hex(4)}")
    nonce = secrets.token_hex(16).encode()
    errand = Errand(storage=storage, output=output, stem=stem, nonce=nonce, source=source)
    nodes = {node["NodeID"]: node for node in _working_nodes()}
    storage.write(f"{stem}-nonce", nonce)
    try:
        answers = _ask(nodes, errand, load, say)
        missing = [each for each in answers if not _is_answered(errand, each)]
    finally:
        storage.delete_many([f"{stem}-{name}" for name in ("nonce", *nodes)])
    problems = {
        each: problem for each, answer in answers.items() if (problem := answer.problem) is not None
    }
    for each in missing:
        problems.setdefault(each, _not_shared(output))
    own = versions()
    for each, answer in answers.items():
        if differences := [
            f"{name} {answer.versions.get(name)} instead of {version}"
            for name, version in own.items()
            if answer.versions and answer.versions.get(name) != version
        ]:
            problems.setdefault(each, ConfigError(f"has {', '.join(differences)}"))
    if problems:
        raise _joined(problems, nodes)


def _joined(
    problems: dict[str, EffnetBatchError], nodes: dict[str, dict[str, Any]]
) -> EffnetBatchError:
    """Returns one error for all nodes: a mistake that all of them found, or which node lacks what.

    Args:
        problems: by the node's id; at least one.
        nodes: all that were asked, by id.
    """
    first, *_ = problems.values()
    if len(problems) == len(nodes) and len({str(each) for each in problems.values()}) == 1:
        return first
    lines = [f"node {_name(nodes[each])}: {problem}" for each, problem in problems.items()]
    text = "\n  ".join(
        [f"{len(problems)} of {len(nodes)} nodes cannot do this job", *lines[:_MAX_LINES]]
    )
    is_storage = all(isinstance(each, StorageError) for each in problems.values())
    return StorageError(text) if is_storage else ConfigError(text)


def versions() -> dict[str, str]:
    """Returns what must be the same on all nodes of a cluster: libraries, and our own code."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return {
        "python": platform.python_version(),
        "ray": importlib.metadata.version("ray"),
        "torch": importlib.metadata.version("torch"),
        "effnet_batch": digest.hexdigest()[:12],
    }


def _ask(
    nodes: dict[str, dict[str, Any]],
    errand: Errand,
    load: Callable[[], object],
    say: Callable[[str], None],
) -> dict[str, Answer]:
    """Returns the answer of every node, by its id; a node lost meanwhile is not missed."""
    # No CPU is asked for: a node that is busy with another job answers all the same.
    task = ray.remote(num_cpus=0, max_retries=1)(_run_errand)
    refs = {
        task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote(errand, node_id, load): node_id
        for node_id in nodes
    }
    _, late = ray.wait(list(refs), num_returns=len(refs), timeout=_SLOW_SECONDS)
    if late:
        named = ", ".join(_name(nodes[refs[ref]]) for ref in late[:_MAX_LINES])
        say(
            f"{len(late)} of {len(refs)} nodes have not answered within {_SLOW_SECONDS:g} s and "
            f"have until {_ANSWER_SECONDS:g} s: {named}"
        )
    done, late = ray.wait(
        list(refs), num_returns=len(refs), timeout=_ANSWER_SECONDS - _SLOW_SECONDS
    )
    answers = {
        refs[ref]: _failed(
            f"has not answered within {_ANSWER_SECONDS:g} s: it starts no worker, or cannot read "
            f"the weights in that time"
        )
        for ref in late
    }
    for ref in done:
        try:
            answers[refs[ref]] = ray.get(ref)
        except ray.exceptions.RayError as error:
            answers[refs[ref]] = _failed(f"cannot run effnet_batch: {_last_line(error)}")
    alive = {node["NodeID"] for node in _working_nodes()}
    return {node_id: answer for node_id, answer in answers.items() if node_id in alive}


def _run_errand(errand: Errand, node_id: str, load: Callable[[], object]) -> Answer:
    """Task: does everything on one node."""
    found = versions()
    pool = concurrent.futures.ThreadPoolExecutor(1)
    try:
        pool.submit(_touch_storage, errand, node_id).result(_STORAGE_SECONDS)
        load()
    except TimeoutError:
        problem = StorageError(
            f"storage has not answered within {_STORAGE_SECONDS:g} s: {redact(errand.output)}"
        )
        return Answer(versions=found, problem=problem)
    except EffnetBatchError as error:
        return Answer(versions=found, problem=error)
    finally:
        pool.shutdown(wait=False)
    return Answer(versions=found, problem=None)


def _touch_storage(errand: Errand, node_id: str) -> None:
    """Answers the nonce, and reads the end of the source.

    Raises:
        StorageError: one of the two cannot be done here.
    """
    try:
        nonce = errand.storage.read(f"{errand.stem}-nonce")
        errand.storage.write(f"{errand.stem}-{node_id}", nonce)
    except FetchError as error:
        if scheme_of(errand.output) == LOCAL and error.error_type == "FileNotFoundError":
            raise _not_shared(errand.output) from error
        raise StorageError(f"cannot read the output: {error}") from error
    except EffnetBatchError as error:
        raise StorageError(f"cannot use the output: {error}") from error
    if errand.source is None:
        return
    try:
        (found,) = errand.storage.read_tails([errand.source], 1)
    except EffnetBatchError as error:
        raise StorageError(f"cannot read the input: {error}") from error
    # An object that is gone is a record; a file that the driver sees is on a disk not shared.
    is_local = scheme_of(errand.source) == LOCAL
    if isinstance(found, FetchError) and (found.is_transient or is_local):
        raise StorageError(f"cannot read the input: {found}") from found


def _is_answered(errand: Errand, node_id: str) -> bool:
    try:
        return errand.storage.read(f"{errand.stem}-{node_id}") == errand.nonce
    except FetchError:
        return False


def _not_shared(output: str) -> StorageError:
    return StorageError(
        f"does not share {redact(output)} with the driver; use a folder that all nodes mount, or "
        f"object storage"
    )


def _working_nodes() -> list[dict[str, Any]]:
    return [
        node
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    ]


def _failed(text: str) -> Answer:
    return Answer(versions={}, problem=ConfigError(text))


def _name(node: dict[str, Any]) -> str:
    """Returns a node's address with the beginning of its id: several may share an address."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
    return redact(named)
