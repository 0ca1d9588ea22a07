"""Jobs on a real cluster of a head without CPUs and three workers, with its dashboard and token."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from embed_process import FAST_MODEL, read_rows
from photographs import small_jpegs
from ray_nodes import RayNodes
from s3_server import S3Server
from tiny_checkpoint import tiny_checkpoint
from video_files import encode

from effnet_batch.cli import main
from effnet_batch.models.checkpoint_file import checkpoint_bytes

ROOT = Path(__file__).parents[1]
NUM_IMAGES = 120
ROWS_PER_PART = 4
SLOWLY = ("--set", "max_requests_per_second=1")
"""A worker fetches an image a second, so that a slow machine too strikes in the middle."""
PLACES = ("--set=input=s3://bucket/in", "--set=output=s3://bucket/out")
GIVE_UP_SECONDS = 300.0
SENTINEL = "sentinel-of-the-secret-5d1f"


@dataclass(frozen=True)
class Site:
    """A cluster, a bucket with images, and the command line of somebody who uses both."""

    nodes: RayNodes
    s3: S3Server
    folder: Path

    def config(self, name: str, **changes: object) -> Path:
        """Write a settings file of the embedding job; its output has the name."""
        settings = {
            "input": self.uri("in"),
            "output": self.uri(name),
            "rows_per_part": ROWS_PER_PART,
            **{
                flag.replace("-", "_"): int(value) if value.isdigit() else value
                for flag, value in (each[2:].split("=") for each in FAST_MODEL)
            },
            **changes,
        }
        path = self.folder / f"{name}.toml"
        path.write_text("".join(f"{key} = {json.dumps(each)}\n" for key, each in settings.items()))
        return path

    def uri(self, output: str) -> str:
        return f"s3://{self.s3.bucket}/cluster/{output}"

    def environment(self, **changes: str) -> dict[str, str]:
        return {**os.environ, **self.nodes.client_environment, **changes}

    def run(self, *arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run ``effnet-batch cluster``."""
        return subprocess.run(
            [sys.executable, "-m", "effnet_batch", "cluster", *map(str, arguments)],
            env=self.environment(**changes),
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    def num_parts(self, output: str) -> int:
        return len(self.s3.keys(f"cluster/{output}/data/"))

    def wait_for_parts(self, output: str, number: int) -> None:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while self.num_parts(output) < number:
            assert time.monotonic() < deadline, self.run("list").stdout
            time.sleep(0.05)

    def assert_exactly_once(self, output: str) -> None:
        rows = read_rows(self.s3, f"cluster/{output}", ["uri", "status"])
        uris = rows["uri"].to_pylist()
        assert len(uris) == len(set(uris)) == NUM_IMAGES
        assert set(rows["status"].to_pylist()) == {"ok"}
        assert json.loads(self.s3.get(f"cluster/{output}/run.json"))["state"] == "complete"


@pytest.fixture(scope="module")
def site(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("cluster")
    for index, data in enumerate(small_jpegs(NUM_IMAGES, seed=5)):
        s3.put(f"cluster/in/{index:03}.jpg", data)
    # What the nodes have installed does not even import: the code must come with the job.
    (folder / "installed" / "effnet_batch").mkdir(parents=True)
    (folder / "installed" / "effnet_batch" / "__init__.py").write_text("raise ImportError('old')")
    environment = {
        **s3.env,
        "PYTHONPATH": str(folder / "installed"),
        "EFFNET_TEST_SECRET": SENTINEL,
    }
    with RayNodes(folder, environment) as nodes:
        nodes.start_head()
        nodes.add_workers(3)
        yield Site(nodes, s3, folder)


def test_a_job_is_submitted_watched_and_joined_and_leaves_no_secret(site, ray_tmp_dir):
    config = site.config("watched")
    done = site.run("submit", "embed", "--config", config, "--wait", "--set", "top_k=3")
    assert done.returncode == 0, done.stdout + done.stderr
    first = done.stdout.splitlines()[0]
    assert re.fullmatch(r"embed-[0-9a-f]{12}-1", first)
    assert f"records   {NUM_IMAGES}" in done.stdout
    site.assert_exactly_once("watched")
    assert json.loads(site.s3.get("cluster/watched/run.json"))["config"]["top_k"] == 3

    # The same job again is the second submission; it has nothing to do and needs no worker.
    done = site.run("submit", "embed", "--config", config, "--set", "top_k=3")
    second = done.stdout.strip()
    assert (done.returncode, second) == (0, f"{first[:-1]}2")
    followed = site.run("logs", "-f", second)
    assert "nothing was left to do" in followed.stdout
    assert site.run("logs", second).stdout == followed.stdout
    assert site.run("wait", second).returncode == 0
    lines = site.run("list").stdout.splitlines()
    assert [line.split()[:3] for line in lines[-2:]] == [
        [first, "SUCCEEDED", "0"],
        [second, "SUCCEEDED", "0"],
    ]
    for path in [path for path in ray_tmp_dir.rglob("*") if path.is_file()]:
        text = path.read_bytes()
        assert site.s3.secret_key.encode() not in text, path
        assert SENTINEL.encode() not in text, path
        assert site.nodes.token.encode() not in text, path


def test_a_job_stopped_in_its_middle_goes_on_when_it_is_submitted_again(site):
    config = site.config("stopped")
    first = site.run("submit", "embed", "--config", config, *SLOWLY).stdout.strip()
    site.wait_for_parts("stopped", 5)
    joined = site.run("submit", "embed", "--config", config)
    assert joined.stdout.strip() == first
    assert "already works on" in joined.stderr
    assert "STOPPED" in site.run("stop", first).stderr
    before = read_rows(site.s3, "cluster/stopped", ["uri"])["uri"].to_pylist()
    assert 0.1 * NUM_IMAGES < len(before) < 0.9 * NUM_IMAGES
    assert site.run("wait", first).returncode == 130

    mark = site.s3.access_log.mark()
    done = site.run("submit", "embed", "--config", config, "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == f"{first[:-1]}2"
    site.assert_exactly_once("stopped")
    read = site.s3.access_log.gets(since=mark, prefix="cluster/in/")
    assert not {uri.split("/", 3)[3] for uri in before} & read.keys()


def test_a_failed_job_is_submitted_again_and_a_hopeless_one_is_not(site):
    config = site.config("retried")
    command = [sys.executable, "-m", "effnet_batch", "cluster", "submit", "embed", "--wait"]
    waiting = subprocess.Popen(
        [*command, "--retries=2", f"--config={config}", *SLOWLY],
        env=site.environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    site.wait_for_parts("retried", 5)
    killed = site.num_parts("retried") * ROWS_PER_PART
    (driver,) = [
        each
        for each in site.nodes.nodes[0].processes("--config job.toml")
        if Path(each.exe()).name.startswith("python")
    ]
    driver.kill()
    stdout, stderr = waiting.communicate()
    assert waiting.returncode == 0, stdout + stderr
    assert "failed; submitting it again, 2 more times at most" in stderr
    assert killed < 0.9 * NUM_IMAGES
    ids = re.findall(r"^embed-[0-9a-f]{12}-(\d)$", stdout, re.MULTILINE)
    assert ids == ["1", "2"]
    site.assert_exactly_once("retried")

    # Exit code 2 is the job's own, and would come again.
    config = site.config("hopeless", model="efficientnet_b9")
    done = site.run("submit", "embed", "--config", config, "--wait", "--retries", "3")
    assert done.returncode == 2
    assert "did you mean efficientnet_b8" in done.stdout
    assert len(re.findall(r"^embed-", done.stdout, re.MULTILINE)) == 1


def test_videos_are_scored(site):
    videos = [encode(num_frames=20, options={"g": "5"}), encode("mpeg4", num_frames=12)]
    for index in range(6):
        site.s3.put(f"cluster/videos/{index}.mp4", videos[index % 2])
    site.s3.put("cluster/tiny.safetensors", checkpoint_bytes(*tiny_checkpoint()))
    settings = {
        "input": site.uri("videos"),
        "output": site.uri("scores"),
        "checkpoint": [site.uri("tiny.safetensors")],
        "engine": "torch",
    }
    path = site.folder / "scores.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    done = site.run("submit", "score", "--config", path, "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"score-[0-9a-f]{12}-1\n", done.stdout)
    rows = read_rows(site.s3, "cluster/scores", ["uri", "status", "score"])
    assert rows["status"].to_pylist() == ["ok"] * 6
    assert len(set(rows["uri"].to_pylist())) == 6


def test_workers_actors_and_nodes_may_die(site):
    """Every kind of loss within one run, which must end by itself with every record once."""
    config = site.config("losses")
    first = site.run("submit", "embed", "--config", config, *SLOWLY).stdout.strip()
    site.wait_for_parts("losses", 4)
    _, one, two, three = site.nodes.nodes[:4]
    for name in ("records", "written_bytes", "stage_seconds", "model_calls"):
        one.wait_for_metric(f"ray_effnet_batch_{name}_total")
    assert one.kill("ray::MapWorker")  # a model actor
    assert two.kill("ray::IDLE", "ray::ProgressBoard", "ray::MapWorker", "ray::_run_errand")
    (four,) = site.nodes.add_workers(1)
    at = site.num_parts("losses") * ROWS_PER_PART
    assert 0.1 * NUM_IMAGES < at < 0.9 * NUM_IMAGES
    assert three.kill()  # a whole node, whose place the new one takes
    done = site.run("wait", first)
    assert done.returncode == 0, site.run("logs", first).stdout
    site.assert_exactly_once("losses")
    assert not three.processes()
    assert four.processes()


@pytest.fixture
def good_nodes(site: Site) -> Iterator[None]:
    """The cluster's own nodes; those that a test adds are ended with it."""
    number = len(site.nodes.nodes)
    yield
    for node in site.nodes.nodes[number:]:
        node.kill()


@pytest.mark.usefixtures("good_nodes")
def test_nodes_that_cannot_do_the_job_are_named(site):
    """Checks before work: a node without storage, one with another PyTorch, one without the folder.

    The nodes are real; the first is told another endpoint, the second finds a distribution of
    another version first, and over the third's view of the folder lies another file system.
    """
    shared = site.folder / "shared"
    (shared / "in").mkdir(parents=True)
    (shared / "in" / "one.jpg").write_bytes(small_jpegs(1, seed=5)[0])
    torch = site.folder / "old" / "torch-1.0.0.dist-info"
    torch.mkdir(parents=True)
    (torch / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0.0\n")
    site.nodes.add_workers(1, AWS_ENDPOINT_URL="http://127.0.0.1:1")
    site.nodes.add_workers(1, PYTHONPATH=str(torch.parent))
    mount = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {shared} && exec "$@"', "sh"]
    site.nodes.add_workers(1, prefix=mount)

    remote = site.config("refused")
    local = site.config("local", input=str(shared / "in"), output=str(shared / "out"))
    unschedulable = site.config("unschedulable", device="cuda")
    ids = [
        site.run("submit", "embed", "--config", config).stdout.strip()
        for config in (remote, local, unschedulable)
    ]
    codes = [site.run("wait", each).returncode for each in ids]
    logs = [site.run("logs", each).stdout for each in ids]
    assert codes == [2, 2, 2], logs
    assert "Error: 2 of 6 nodes cannot do this job" in logs[0]
    assert re.search(r"node \S+ \(\w{8}\): cannot read the output: .*127.0.0.1:1", logs[0])
    assert re.search(r"node \S+ \(\w{8}\): has torch 1.0.0 instead of 2", logs[0])
    assert re.search(rf"node \S+ \(\w{{8}}\): does not share {shared}/out with", logs[1])
    assert "no node of the cluster has a CPU and a GPU" in logs[2]
    # Nothing is left behind.
    assert not list(shared.rglob("*preflight*"))
    assert not [key for key in site.s3.keys("cluster/refused/") if "preflight" in key]


def test_rays_own_command_runs_the_job_of_the_readme(site):
    """The project's folder as it is, with the example's places filled in."""
    project = site.folder / "project"
    for name in ("effnet_batch", "jobs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, project / name, ignore=ignore)
    settings = (ROOT / "jobs" / "embed_images.toml").read_text()
    for name, place in (("input", "in"), ("output", "plain")):
        settings, number = re.subn(f"(?m)^{name} = .*", f'{name} = "{site.uri(place)}"', settings)
        assert number == 1
    (project / "jobs" / "embed_images.toml").write_text(settings)
    line = "ray job submit --working-dir . -- python jobs/score_videos.py --config "
    assert f"{line}jobs/score_videos.toml" in (ROOT / "README.md").read_text()
    line = f"{line}jobs/embed_images.toml".replace("score_videos", "embed_images")
    done = subprocess.run(
        [*line.split(), *FAST_MODEL],
        env=site.environment(PATH=site.nodes.environment["PATH"]),
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    site.assert_exactly_once("plain")


def test_the_image_may_have_the_code(site):
    config = site.config("image")
    arguments = ("submit", "embed", "--config", config, "--code", "image", "--wait")
    done = site.run(*arguments)
    assert (done.returncode, "ImportError: old" in done.stdout) == (1, True)
    forward = ("--insecure-forward-env", "PYTHONPATH")
    done = site.run(*arguments, *forward, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    site.assert_exactly_once("image")


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["list"], {"RAY_AUTH_TOKEN": "wrong"}, "refuses the token"),
        (["list"], {"RAY_AUTH_MODE": "disabled"}, "refuses the token"),
        (["list", "--address=http://127.0.0.1:1"], {}, "no Ray cluster at http://127.0.0.1:1: "),
        (["logs", "-f", "embed-0-1"], {}, "Job embed-0-1 does not exist"),
        (["submit", "embed", *PLACES, "--set=input=in"], {}, "INPUT in is a path of this machine"),
        (["submit", "embed", *PLACES, "--insecure-forward-env=NO"], {}, "be forwarded: NO"),
    ],
)
def test_what_cannot_work_is_said_at_once(site, arguments, changes, message):
    done = site.run(*arguments, **changes)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--address=127.0.0.1:6379"], "begins with http:// or https://"),
        (["submit", "embed"], "the job has no input"),
        (["submit", "embed", PLACES[0]], "the job has no output"),
        (["submit", "embed", "--retries=1"], "--retries needs --wait"),
        (["submit", "embed", "--set=in"], "--set takes KEY=VALUE, got 'in'"),
        (["submit", "embed", *PLACES, "--set=modl=x"], "did you mean 'model'?"),
        (["submit", "embed", *PLACES, "--set=top_k=-1"], "top_k must be at least 0, got -1"),
    ],
)
def test_a_mistake_needs_no_cluster(arguments, message, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["cluster", *arguments])
    printed = capfd.readouterr()
    assert (caught.value.code, printed.out) == (2, "")
    assert message in printed.err
