"""What the benchmark of the GPU path does on a machine without one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to measure")
def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path: Path) -> None:
    figures = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--json", str(figures)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("no CUDA device here, nothing is measured")
    assert not done.stdout
    assert not figures.exists()
