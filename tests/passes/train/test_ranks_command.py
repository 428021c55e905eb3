"""`mbqc compile` in the processes that `torchrun` starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mbqc.cli.main import run_command

MODEL = """
from tests.passes.train.small import context, network as model, stripes

def example_inputs():
    return context().example_inputs

def train_data():
    return stripes()

def eval_data():
    return [stripes(48, seed=1)]
"""


def test_of_the_processes_of_torchrun_one_writes_and_speaks(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    passes = "quant,bncorrect,train{epochs=2,batch=16}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mbqc"]
    variables = {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "compile", "model.py", "--passes", passes],
        cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model.mbqc: normalize,quant,bncorrect,train") == 1
    assert done.stdout.count("2 epochs, 36 steps") == 1
    assert (tmp_path / "model.mbqc").stat().st_size > 0
    assert (tmp_path / "model.training" / "history.json").stat().st_size > 0


def test_a_rank_without_a_world_is_no_second_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other launchers set RANK too."""
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    out = tmp_path / "model.mbqc"
    assert run_command(["compile", str(tmp_path / "model.py"), "--passes", "quant", "--out", str(out)]) == 0
    assert out.exists()
