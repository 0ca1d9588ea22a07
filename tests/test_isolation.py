import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from photographs import encode, photograph
from PIL import Image

from effnet_batch.errors import (
    CrashedError,
    DecodeError,
    JobError,
    OutOfMemoryError,
    RecordError,
    TimeoutRecordError,
    TooLargeError,
    UnsupportedError,
)
from effnet_batch.media.image import ImageLimits, decode_image
from effnet_batch.media.isolation import IsolatedDecoder
from effnet_batch.media.preprocess import Preprocessing

RECIPE = Preprocessing(image_size=64, resize_size=64)
LIMITS = ImageLimits()
GOOD = encode(photograph("cat"))
MEMORY_BYTES = 512 << 20
MARKER = b"MISBEHAVE:"

# Loaded by the child before anything else: bytes that carry the marker make Pillow's JPEG plugin
# misbehave as a bug in a decoder would. Python's own commands stand in for native code.
SABOTAGE = f"""
import ctypes, os, signal, sys, threading, time
import PIL.JpegImagePlugin as plugin

original_open = plugin.JpegImageFile._open

def sabotaged_open(self):
    data = self.fp.getvalue()
    position = data.find({MARKER!r})
    if position >= 0:
        exec(data[position + {len(MARKER)} :].decode(), globals())
    original_open(self)

plugin.JpegImageFile._open = sabotaged_open
count = 0
"""


def misbehave(python: str) -> bytes:
    return GOOD + MARKER + python.encode()


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.fixture
def decoder(sabotage: None) -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(RECIPE, LIMITS, timeout_seconds=60, memory_bytes=MEMORY_BYTES) as made:
        yield made


def assert_decodes(decoder: IsolatedDecoder) -> None:
    decoded, expected = decoder.decode(GOOD), decode_image(GOOD, RECIPE, LIMITS)
    np.testing.assert_array_equal(decoded.frame, expected.frame)
    assert (decoded.width, decoded.height) == (expected.width, expected.height) == (451, 300)
    assert decoded.frame.flags.writeable
    assert decoded.frame.flags.c_contiguous


def test_one_child_decodes_as_this_process_does(decoder: IsolatedDecoder) -> None:
    assert decoder.pid is None
    for _ in range(5):
        assert_decodes(decoder)
    assert decoder.num_started == 1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", DecodeError),
        (GOOD[: len(GOOD) // 2], DecodeError),
        (b"%PDF-1.7", UnsupportedError),
        (encode(Image.new("1", (20_000, 20_000)), "PNG"), TooLargeError),
    ],
)
def test_the_childs_error_is_raised_here_and_the_child_lives_on(
    decoder: IsolatedDecoder, data: bytes, expected: type[RecordError]
) -> None:
    with pytest.raises(expected) as here:
        decode_image(data, RECIPE, LIMITS)
    with pytest.raises(expected) as there:
        decoder.decode(data)
    assert str(there.value) == str(here.value)
    assert_decodes(decoder)
    assert decoder.num_started == 1


def test_too_many_bytes_are_refused_without_a_child() -> None:
    with (
        IsolatedDecoder(RECIPE, ImageLimits(max_bytes=10), 60, MEMORY_BYTES) as decoder,
        pytest.raises(TooLargeError, match="at most 10"),
    ):
        decoder.decode(GOOD)
    assert decoder.num_started == 0


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL"])
def test_a_crash_names_its_signal_and_the_next_image_decodes(
    decoder: IsolatedDecoder, name: str
) -> None:
    with pytest.raises(CrashedError, match=name):
        decoder.decode(misbehave(f"os.kill(os.getpid(), signal.{name})"))
    assert_decodes(decoder)
    assert decoder.num_started == 2


def test_a_real_segmentation_fault_is_a_crash(decoder: IsolatedDecoder) -> None:
    with pytest.raises(CrashedError, match="SIGSEGV"):
        decoder.decode(misbehave("ctypes.string_at(0)"))


def test_an_exit_in_the_middle_is_a_crash(decoder: IsolatedDecoder) -> None:
    with pytest.raises(CrashedError, match="exit status 7"):
        decoder.decode(misbehave("os._exit(7)"))


def test_a_death_after_other_images_is_tried_again_in_a_fresh_child(
    decoder: IsolatedDecoder, tmp_path: Path
) -> None:
    assert_decodes(decoder)
    flag = tmp_path / "died once"
    once = f"os.path.exists({str(flag)!r}) or (open({str(flag)!r}, 'w'), ctypes.string_at(0))"
    decoder.decode(misbehave(once))
    assert decoder.num_started == 2
    with pytest.raises(CrashedError, match="SIGSEGV"):
        decoder.decode(misbehave("ctypes.string_at(0)"))
    assert decoder.num_started == 3


def test_a_child_that_died_between_images_is_replaced(decoder: IsolatedDecoder) -> None:
    assert_decodes(decoder)
    assert decoder.pid is not None
    os.kill(decoder.pid, signal.SIGKILL)
    psutil.Process(decoder.pid).wait(timeout=30)
    assert_decodes(decoder)
    assert decoder.num_started == 2


@pytest.mark.parametrize(
    "hang",
    [
        "time.sleep(1000)",
        "while True: pass",
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); time.sleep(1000)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
    ],
)
def test_a_hang_is_ended_and_the_next_image_decodes(sabotage: None, hang: str) -> None:
    with IsolatedDecoder(RECIPE, LIMITS, timeout_seconds=1, memory_bytes=MEMORY_BYTES) as decoder:
        with pytest.raises(TimeoutRecordError, match="longer than 1 s"):
            decoder.decode(misbehave(hang))
        assert decoder.pid is None
        assert_decodes(decoder)
        assert decoder.num_started == 2


def test_memory_is_limited_beyond_what_the_idle_child_has(decoder: IsolatedDecoder) -> None:
    decoder.decode(misbehave(f"hoard = bytearray({MEMORY_BYTES // 2}); del hoard"))
    with pytest.raises(OutOfMemoryError, match="out of memory while decoding"):
        decoder.decode(misbehave(f"hoard = bytearray({MEMORY_BYTES})"))
    assert_decodes(decoder)


def test_a_real_image_over_the_memory_limit(sabotage: None) -> None:
    data = encode(Image.new("RGB", (10_000, 8_000)), "PNG")  # 320 MB as Pillow holds it
    with IsolatedDecoder(RECIPE, LIMITS, timeout_seconds=60, memory_bytes=100 << 20) as decoder:
        with pytest.raises(OutOfMemoryError):
            decoder.decode(data)
        assert_decodes(decoder)


def test_an_encoded_image_over_the_memory_limit() -> None:
    with IsolatedDecoder(RECIPE, LIMITS, timeout_seconds=60, memory_bytes=32 << 20) as decoder:
        with pytest.raises(OutOfMemoryError, match="encoded image alone"):
            decoder.decode(GOOD + bytes(200 << 20))
        assert_decodes(decoder)


def test_death_by_sigkill_is_the_system_out_of_memory(decoder: IsolatedDecoder) -> None:
    with pytest.raises(OutOfMemoryError, match="SIGKILL"):
        decoder.decode(misbehave("os.kill(os.getpid(), signal.SIGKILL)"))


@pytest.mark.parametrize(
    "answer",
    [
        "b'\\xff' * 17",  # an unknown kind with an absurd length
        "b'\\x01' + (64).to_bytes(4, 'little') * 2 + (10).to_bytes(8, 'little') + bytes(10)",
        "b'\\x01' + bytes(8) + (64 * 64 * 3).to_bytes(8, 'little') + bytes(64 * 64 * 3)",
        "b'\\x09' + bytes(16)",
    ],
)
def test_answers_that_make_no_sense_are_a_crash(decoder: IsolatedDecoder, answer: str) -> None:
    # Native code that was taken over can write to every descriptor of the child.
    forge = (
        "import stat\n"
        "pipes = [n for n in range(3, 20) if os.path.exists(f'/proc/self/fd/{n}')]\n"
        "for n in pipes:\n"
        "    try: os.write(n, " + answer + ")\n"
        "    except OSError: pass\n"
        "time.sleep(1000)"
    )
    with pytest.raises(CrashedError, match="went wrong"):
        decoder.decode(misbehave(forge))
    assert_decodes(decoder)


def test_what_the_child_prints_is_no_answer(decoder: IsolatedDecoder) -> None:
    noise = "os.write(1, bytes(100_000)); os.write(2, b'warning' * 100_000); print('hello')"
    for _ in range(20):
        decoder.decode(misbehave(noise))
    assert_decodes(decoder)
    assert decoder.num_started == 1


def test_no_secret_is_in_the_childs_environment(
    sabotage: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sentinel-3f81"
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MY_API_KEY", "DATABASE_URL"):
        monkeypatch.setenv(name, secret)
    with IsolatedDecoder(RECIPE, LIMITS, 60, MEMORY_BYTES) as decoder:
        decoder.decode(GOOD)
        child = Path(f"/proc/{decoder.pid}")
        assert secret.encode() not in (child / "environ").read_bytes()
        assert secret.encode() not in (child / "cmdline").read_bytes()


def test_closing_ends_the_child_and_an_interruption_does_too(decoder: IsolatedDecoder) -> None:
    decoder.decode(GOOD)
    first = decoder.pid
    assert first is not None
    decoder.close()
    assert not psutil.pid_exists(first)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    decoder.decode(GOOD)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        decoder.decode(misbehave("time.sleep(1000)"))
    assert decoder.pid is None
    assert_decodes(decoder)


@pytest.mark.parametrize("is_busy", [False, True])
def test_the_child_ends_with_its_parent(sabotage: None, is_busy: bool) -> None:
    script = (
        "import sys\n"
        "from effnet_batch.media.image import ImageLimits\n"
        "from effnet_batch.media.isolation import IsolatedDecoder\n"
        "from effnet_batch.media.preprocess import Preprocessing\n"
        "recipe = Preprocessing(image_size=64, resize_size=64)\n"
        "decoder = IsolatedDecoder(recipe, ImageLimits(), 60, 1 << 30)\n"
        "decoder.decode(bytes.fromhex(sys.stdin.readline()))\n"
        "print(decoder.pid, flush=True)\n"
        "decoder.decode(bytes.fromhex(sys.stdin.readline()))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(GOOD.hex() + "\n")
        parent.stdin.flush()
        child = psutil.Process(int(parent.stdout.readline()))
        if is_busy:
            parent.stdin.write(misbehave("time.sleep(3)").hex() + "\n")
            parent.stdin.flush()
            time.sleep(0.5)
        parent.kill()
    child.wait(timeout=60)


def test_an_orphan_that_hangs_is_ended_by_an_alarm(decoder: IsolatedDecoder) -> None:
    # The alarm is due 30 s after the limit; shortened here, its default action must end the child.
    with pytest.raises(CrashedError, match="SIGALRM"):
        decoder.decode(
            misbehave(
                "left = signal.getitimer(signal.ITIMER_REAL)[0]\n"
                "assert 60 < left <= 90, left\n"
                "signal.setitimer(signal.ITIMER_REAL, 0.1)\n"
                "while True: pass"
            )
        )


def test_a_child_that_cannot_start_is_no_fault_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys; sys.stderr.write('the disk is on fire\\n'); sys.stderr.flush()\n"
        "import os; os._exit(3)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        IsolatedDecoder(RECIPE, LIMITS, 60, MEMORY_BYTES) as decoder,
        pytest.raises(JobError, match="the disk is on fire"),
    ):
        decoder.decode(GOOD)


@pytest.mark.parametrize(("timeout_seconds", "memory_bytes"), [(0, 1), (1, 0)])
def test_limits_must_be_positive(timeout_seconds: float, memory_bytes: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        IsolatedDecoder(RECIPE, LIMITS, timeout_seconds, memory_bytes)
