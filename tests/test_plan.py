"""What a job will cost: the arithmetic, and a sample that really runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from embed_process import FAST_MODEL
from ray_nodes import RayNodes

from effnet_batch.cli import main
from effnet_batch.errors import ConfigError
from effnet_batch.plan import Costs, Machines, Plan

ROOT = Path(__file__).parents[1]


def costs(*, uses_gpu: bool, model: float = 0.005) -> Costs:
    return Costs(
        num_sources=10,
        num_records=40,
        stage_seconds={"read": 1.0, "decode": 0.018, "model": model, "write": 0.002},
        bytes_per_record=5000.0,
        uses_gpu=uses_gpu,
    )


def test_on_cpus_the_stages_share_the_machines():
    plan = Plan(num_sources=9000, costs=costs(uses_gpu=False))
    assert (plan.num_records, plan.output_bytes) == (36_000, 180e6)
    forecast = plan.on(Machines(cpus=100, price_per_hour=3.0))
    assert forecast.records_per_second == pytest.approx(4000)  # 100 / (20 ms + 5 ms)
    assert forecast.hours == pytest.approx(9 / 3600)
    assert forecast.price == pytest.approx(27 / 3600)
    assert forecast.bottleneck == "decode"
    assert plan.on(Machines(cpus=1)).price is None
    slow = Plan(num_sources=9000, costs=costs(uses_gpu=False, model=0.5))
    assert slow.on(Machines(cpus=1)).bottleneck == "model"


@pytest.mark.parametrize(
    ("cpus", "rate", "bottleneck"), [(8, 400, "decode"), (16, 800, "decode"), (96, 1600, "model")]
)
def test_with_gpus_the_scarcer_of_the_two_decides(cpus, rate, bottleneck):
    plan = Plan(num_sources=10, costs=costs(uses_gpu=True))
    forecast = plan.on(Machines(cpus=cpus, gpus=8))
    assert forecast.records_per_second == pytest.approx(rate)  # CPUs / 20 ms, GPUs / 5 ms
    assert forecast.bottleneck == bottleneck


@pytest.mark.parametrize("uses_gpu", [True, False])
def test_nothing_is_said_of_machines_that_nobody_measured(uses_gpu):
    plan = Plan(num_sources=10, costs=costs(uses_gpu=uses_gpu))
    with pytest.raises(ConfigError, match="of which nothing is known"):
        plan.on(Machines(cpus=8, gpus=0 if uses_gpu else 2))


def test_a_plan_runs_a_sample_and_leaves_nothing(photos, tmp_path):
    flags = ["--sources=6", "--cpus=64", "--price-per-hour=2"]
    flags += [f"--set={flag[2:].replace('-', '_')}" for flag in FAST_MODEL]
    done = subprocess.run(
        [sys.executable, "-m", "effnet_batch", "plan", str(photos), *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    number = len(list(photos.iterdir()))
    assert done.stdout.startswith(f"embed of {photos}, from 6 sources\n")
    assert re.search(rf"^  sources +{number}$", done.stdout, re.MULTILINE)
    assert re.search(rf"^  records +{number}$", done.stdout, re.MULTILINE)
    milliseconds = re.findall(r"^ +(\w+) per record +([\d.]+) ms (\w+)$", done.stdout, re.MULTILINE)
    assert [(stage, unit) for stage, _, unit in milliseconds] == [
        ("read", "waiting"),
        ("decode", "CPU"),
        ("model", "CPU"),
        ("write", "CPU"),
    ]
    assert all(float(value) > 0 for _, value, _ in milliseconds[1:])
    line = re.search(r"^  64 CPUs, 0 GPUs +([\d.,]+) records/s, .*price", done.stdout, re.MULTILINE)
    assert line is not None
    seconds = sum(float(value) for _, value, _ in milliseconds[1:]) / 1000
    assert float(line[1].replace(",", "")) == pytest.approx(64 / seconds, rel=0.05)
    assert not list(tmp_path.iterdir())


def test_a_plan_counts_the_cpus_of_a_cluster(photos, tmp_path):
    with RayNodes(tmp_path, {}) as nodes:
        nodes.start_head()
        nodes.add_workers(2, "--num-cpus=3", "--num-gpus=1")
        flags = ["--sources=4", "--set=device=cpu", f"--set=address={nodes.host}:{nodes.port}"]
        flags += [f"--set={flag[2:].replace('-', '_')}" for flag in FAST_MODEL]
        done = subprocess.run(
            [sys.executable, "-m", "effnet_batch", "plan", str(photos), *flags],
            env={**os.environ, **nodes.client_environment},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert "; its 2 GPUs are not counted: the sample ran on a CPU" in done.stdout
    here, there = (
        re.search(rf"^  {name} +([\d.,]+) records/s", done.stdout, re.MULTILINE)
        for name in ("this machine", "the cluster, 6 CPUs")
    )
    assert here is not None
    assert there is not None
    ratio = float(there[1].replace(",", "")) / float(here[1].replace(",", ""))
    assert ratio == pytest.approx(6 / len(os.sched_getaffinity(0)), rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "INPUT is missing"),
        (["in", "--gpus=8"], "--gpus and --cpus-per-gpu"),
        (["in", "--cpus=8", "--gpus=8", "--cpus-per-gpu=2"], "--gpus and --cpus-per-gpu"),
        (["in", "--set=modl=x"], "did you mean 'model'?"),
        # Before an input is listed that does not even exist.
        (["in", "--set=device=cpu", "--gpus=8", "--cpus-per-gpu=2"], "of which nothing is known"),
        (["in", "--config", f"{ROOT}/jobs/finetune.toml"], "these are settings of finetune; plan"),
        (["in", "--config", f"{ROOT}/jobs/rescore.toml", "--job=score"], "are settings of rescore"),
    ],
)
def test_a_mistake_is_named(arguments, message, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["plan", *arguments])
    assert caught.value.code == 2
    assert message in capfd.readouterr().err
