"""What all tests share: a clean environment, a real S3 server, real photographs.

Test files import the classes behind the fixtures by their modules' names: ``from s3_server import
S3Server``, ``from photographs import small_jpegs``.
"""

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from photographs import write_photographs
from s3_server import S3Server


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what it puts into the background deaf to Ctrl-C; some tests press it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Before any test module is imported: what the developer's shell says about clusters and clouds
    # must not decide what a test does, and Ray reads some of it on import.
    for name in list(os.environ):
        if name.startswith(("AWS_", "RAY_")) and name != "AWS_CA_BUNDLE":
            del os.environ[name]
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    os.environ["AWS_CONFIG_FILE"] = os.devnull
    os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray puts Unix sockets below this folder, and their paths may have 107 bytes.
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-", dir="/tmp")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ.pop("RAY_TMPDIR"), ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        reason = "needs a CUDA device; torch.cuda.is_available() is False"
        if os.environ.get("FAIL_WITHOUT_GPU") == "1":
            pytest.fail(f"{reason} and FAIL_WITHOUT_GPU=1")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def ray_tmp_dir() -> Path:
    """Where Ray keeps its sessions and logs during these tests (``RAY_TMPDIR``)."""
    return Path(os.environ["RAY_TMPDIR"])


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all tests; each takes a place of its own with ``s3_prefix``."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_prefix(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place on the server, such as ``s3://effnet-test/1f…/``, with the environment set."""
    s3.client_env(monkeypatch)
    return f"s3://{s3.bucket}/{uuid.uuid4().hex}/"


@pytest.fixture
def start_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], S3Server]]:
    """Start servers of a test's own, which it may stop and start again as it likes."""
    servers = []

    def start() -> S3Server:
        server = S3Server(tmp_path_factory.mktemp("s3-own"))
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command in this process; gives (exit code, all that it said)."""
    from effnet_batch.cli import main

    def run_command(*args: str) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(list(args), prog_name="effnet-batch")
        return int(caught.value.code or 0), "".join(capfd.readouterr())

    return run_command


@pytest.fixture(scope="session")
def face_model() -> bytes:
    """The face detector's model file, from where CONTRIBUTING.md says."""
    from effnet_batch.errors import WeightsError
    from effnet_batch.media import faces

    beside = Path(__file__).parents[2] / "shared" / "models" / faces.MODEL_FILE
    is_taken = faces.MODEL_VARIABLE not in os.environ and beside.exists()
    try:
        return faces.load_model(beside if is_taken else None)
    except WeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real photographs, each as ``NAME.jpg`` and ``NAME.png``. Read only."""
    folder = tmp_path_factory.mktemp("photos")
    write_photographs(folder)
    return folder
