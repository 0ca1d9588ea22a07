"""What `cluster/` holds, against the schemas of those who read it and against our own commands.

KubeRay's CRDs are large and KubeRay's own: their folder is named by ``KUBERAY_CRDS``.
"""

import copy
import json
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.docker import docker_start_cmds
from ray.autoscaler._private.util import fillout_defaults, validate_config
from ray.scripts.scripts import cli as ray_cli

from effnet_batch import __version__
from effnet_batch.cli import main
from effnet_batch.pipelines import metrics

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
CLOUDS = sorted(CLUSTER.glob("*.yaml"))
MANIFESTS = sorted(CLUSTER.glob("kuberay/ray*.yaml"))
EVERYTHING = sorted(path for path in CLUSTER.rglob("*") if path.is_file())


def parse(line: str) -> None:
    """Parse a command of ours or of Ray's as its program would; an unknown flag raises."""
    program, *arguments = shlex.split(line)
    command: click.Command = {"effnet-batch": main, "ray": ray_cli}[program]
    while isinstance(command, click.Group):
        name, *arguments = arguments
        assert name in command.commands, line
        command = command.commands[name]
    command.make_context(name, arguments, resilient_parsing=False)


def commands(text: str) -> list[str]:
    """Return the command lines of a file, wherever they stand in it."""
    joined = re.sub(r"\n +--", " --", text)
    found = re.findall(
        r"(?:^|[;#`:-]) *((?:effnet-batch|ray) [a-z-]+[^;`\n]*)", joined, re.MULTILINE
    )
    return [line.split("  #")[0].strip() for line in found]


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: path.name)
def test_every_command_in_it_parses(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = commands(path.read_text())
    assert lines or path.name in ("Dockerfile", "grafana.json", "service-account.yaml")
    for line in lines:
        parse(line.replace("$RAY_HEAD_IP", "10.0.0.1"))
        for name in re.findall(r"(?:cluster|jobs)/[\w./-]+\.(?:yaml|toml)", line):
            assert (ROOT / name).exists(), line


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_ray_takes_the_description_of_a_cluster(path):
    config = yaml.safe_load(path.read_text())
    validate_config(fillout_defaults(copy.deepcopy(config)))
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {name: each for name, each in types.items() if name != config["head_node_type"]}
    assert all(each["min_workers"] >= 1 for each in workers.values())
    assert sum("GPU" in each["resources"] for each in workers.values()) == 1
    spot = {"aws": "'MarketType': 'spot'", "gcp": "'preemptible': True"}[config["provider"]["type"]]
    on_spot = {name for name, each in types.items() if spot in str(each["node_config"])}
    assert on_spot == {"decode", "gpu"}
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**config, "max_worker": 3})


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: path.name)
def test_no_key_stands_in_it(path):
    text = path.read_text()
    assert not re.search(r"AKIA|BEGIN [A-Z ]*PRIVATE|aws_secret|auth_token: [A-Za-z0-9]", text)


def strict(schema: Any) -> Any:
    """Return an OpenAPI schema that refuses what it does not name."""
    schema = copy.deepcopy(schema)
    todo = [schema]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if (
                "properties" in node
                and isinstance(node["properties"], dict)
                and node.get("type") == "object"
                and not node.get("x-kubernetes-preserve-unknown-fields")
            ):
                node.setdefault("additionalProperties", False)
            if node.pop("x-kubernetes-int-or-string", False):
                node["anyOf"] = [{"type": "integer"}, {"type": "string"}]
            todo += list(node.values())
        elif isinstance(node, list):
            todo += node
    return schema


@pytest.fixture(scope="module")
def crds() -> dict[str, Any]:
    """Kind -> strict schema of its ``ray.io/v1``."""
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("needs KUBERAY_CRDS, the folder of KubeRay's ray.io_*.yaml")
    found = {}
    for path in Path(folder).glob("ray.io_*.yaml"):
        crd = yaml.load(path.read_text(), yaml.CSafeLoader)
        (version,) = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
        found[crd["spec"]["names"]["kind"]] = schema
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kuberay_takes_the_manifest(path, crds):
    manifest = yaml.safe_load(path.read_text())
    assert manifest["apiVersion"] == "ray.io/v1"
    schema = crds[manifest["kind"]]
    jsonschema.validate(manifest, schema)
    for wrong in ("entrypont", "rayVersio"):  # the schema is one that finds mistakes
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**manifest, "spec": {**manifest["spec"], wrong: "x"}}, schema)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_fits_our_image_and_rays_rules(path):
    manifest = yaml.safe_load(path.read_text())
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    locked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert locked == __version__
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    assert spec["rayVersion"] == pins["ray"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    targets = set(re.findall(r"AS (\w+)", (CLUSTER / "Dockerfile").read_text())) - {"base"}
    assert targets == {"cpu", "cuda"}
    groups = {each["groupName"]: each for each in spec["workerGroupSpecs"]}
    assert set(groups) == {"decode", "gpu"}
    pods = [spec["headGroupSpec"], *groups.values()]
    for pod in (each["template"]["spec"] for each in pods):
        assert pod["serviceAccountName"] == "effnet-batch"
        (container,) = pod["containers"]
        target = container["image"].removeprefix(f"effnet-batch:{__version__}-")
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert target == ("cuda" if has_gpu else "cpu")
        assert set(container["resources"]) == {"requests", "limits"}
        assert container["securityContext"]["runAsNonRoot"]
    if manifest["kind"] == "RayJob":
        (volume,) = spec["headGroupSpec"]["template"]["spec"]["volumes"]
        path_in_pod = manifest["spec"]["entrypoint"].split()[-1]
        (mount,) = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        assert path_in_pod.startswith(mount["mountPath"])
        created = f"configmap {volume['configMap']['name']} --from-file={Path(path_in_pod).name}="
        assert created in path.read_text()


def test_the_image_is_pinned_and_runs_as_nobody():
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", "")
    bases = re.findall(r"^FROM (\S+)(?: AS \w+)?$", text, re.MULTILINE)
    assert all(base == "base" or re.search(r":\d+\.\d+\.\d+-", base) for base in bases)
    cpu, cuda = re.split(r"^FROM base AS \w+$", text, flags=re.MULTILINE)[1:]
    for each in (cpu, cuda):
        assert re.findall(r"^USER (\S+)$", each, re.MULTILINE) == ["ray"]
    # By itself the one for CPUs is the small one.
    assert ["--torch-backend=cpu" in each for each in (cpu, cuda)] == [True, False]
    installs = re.findall(r"pip install (.*)", text)
    torch = re.search(r"torch==\S+", (ROOT / "Makefile").read_text())
    assert torch is not None
    assert torch[0] in text
    assert all("-c constraints.txt" in each or torch[0] in each for each in installs)
    (extras,) = set(re.findall(r"\"\.\[(.*)\]\"", text))
    # What the files in jobs/ ask for: storage, videos, plots of evaluate, MLflow of finetune.
    wanted = {"azure", "gcs", "hub", "mlflow", "openvino", "plots", "video"}
    # Of `ray up`: its head starts the other nodes and copies the token to them, into the home that
    # the image names, from which the tools of its containers take it.
    assert wanted | {"launcher"} <= set(extras.split(","))
    (packages,) = re.findall(r"apt-get install (.*?)&&", text)
    assert {"openssh-client", "rsync"} <= set(packages.split())
    home = re.search(r"^ENV HOME=(\S+)", text, re.MULTILINE)
    assert home is not None
    mounts = yaml.safe_load((CLUSTER / "aws.yaml").read_text())["file_mounts"]
    command = docker_start_cmds("ubuntu", "image", mounts, "ray", [], "name", home[1], "docker")
    assert ":/home/ray/.ray/auth_token " in command
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source


def test_the_dashboard_shows_every_metric_of_ours():
    board = json.loads((CLUSTER / "grafana.json").read_text())
    text = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    published = {
        value for value in vars(metrics).values() if str(value).startswith("effnet_batch_")
    }
    assert set(re.findall(r"ray_(effnet_batch_\w+)_total", text)) == published
