import subprocess
import sys

SCRIPT = """
import os, subprocess, sys, threading
from effnet_batch.cli_noise import quiet_streams
with quiet_streams() as stream:
    os.write(2, b"[2026-01-02 03:04:05,678 E 12 34] core_worker.cc:1: noise\\n")
    os.write(2, b"\\x1b[33m(raylet)\\x1b[0m Task submit failed.\\n")
    os.write(2, b"2026-01-02 03:04:05,678\\tERROR streaming_executor_state.py:745 -- noise\\n")
    os.write(2, b"2026-01-02 03:04:05,678\\tERROR exceptions.py:79 -- Exception in user code\\n")
    os.write(2, b"[W] a plain line\\n")
    print("from python", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo from a child >&2"], check=True)
    stream.write("console\\n")
    for text in ("(raylet) a worker died", "of the listener"):
        thread = threading.Thread(target=print, args=(text,), name="ray_listen_error_messages")
        thread.start()
        thread.join()
    print("a result")
print("afterwards", file=sys.stderr)
"""


def test_only_the_native_log_lines_are_left_out():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert sorted(done.stderr.splitlines()) == [
        "[W] a plain line",
        "afterwards",
        "console",
        "from a child",
        "from python",
        "of the listener",
    ]
    assert done.stdout == "a result\n"


def test_a_traceback_still_reaches_the_user():
    script = SCRIPT.replace('stream.write("console\\n")', "raise KeyError('lost')")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "KeyError: 'lost'"
