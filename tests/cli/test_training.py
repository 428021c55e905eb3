"""`mbqc compile` with `train`: what it prints and leaves, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import mbqc
from mbqc.errors import PassError
from mbqc.userfile import load_user_model
from tests.cli.conftest import TINY, Cli, fits

TRAIN = ("--backend", "reference", "--passes", "quant,bncorrect,train{epochs=2}")


def test_trains_and_says_so(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    found = cli("compile", tiny, *TRAIN)
    assert found.code == 0, found
    assert found.err == ""
    assert found.out.startswith("tiny.mbqc: normalize,quant,bncorrect,train{epochs=2},lower\n")
    assert "bits         before  trained  Program\n" in found.out
    assert "2 epochs, 12 steps: " in found.out
    assert "kept in   tiny.training\n" in found.out
    assert "changes the float model" not in found.out
    names = {path.name for path in (tmp_path / "tiny.training").iterdir()}
    assert names - {"curves.png"} == {"history.json", "step-00000002.safetensors", "step-00000004.safetensors"}
    mbqc.load(tmp_path / "tiny.mbqc", backend="reference")


def test_json(cli: Cli, tiny: Path) -> None:
    training = cli("compile", tiny, *TRAIN, "--training", "kept/here", "--json").json["training"]
    assert training["folder"] == "kept/here"
    assert (training["epochs"], training["steps"]) == (2, 12)
    assert [row["bits"] for row in training["widths"]] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert [row["bits"] for row in training["widths"] if row["trained"]] == [8, 4, 2]
    for row in training["widths"]:
        assert row["pooled"] is row["separate"] is None
        assert abs(row["program"] - row["after"]) <= 100 / 24  # one of the 24 samples
    assert json.loads(Path("kept/here/history.json").read_text())["exact"] == training["exact"]


@pytest.mark.parametrize("columns", [60, 120])
def test_the_table_fits(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    found = cli("compile", tiny, *TRAIN[:-1], "quant,bncorrect,train{epochs=1,reestimate=width}")
    table = found.out[found.out.index("bits  ") : found.out.index("  metric on eval_data()")]
    assert fits(table, columns)
    assert table.split("\n")[0].split() == ["bits", "before", "trained", "pooled", "BN", "own", "BN", "Program"]
    assert "…" not in table


def test_a_small_metric_is_told_apart(cli: Cli, tiny: Path) -> None:
    tiny.write_text(f"{TINY}\ndef metric(output, target):\n    return -1e-5 * output.square().mean()\n")
    found = cli("compile", tiny, *TRAIN)
    assert found.code == 0, found
    table = found.out[found.out.index("bits  ") : found.out.index("  metric on eval_data()")]
    assert "-0.00 " not in table
    assert "e-" in table


def test_without_eval_data_there_is_no_table(cli: Cli, tiny: Path) -> None:
    tiny.write_text(TINY.replace("def eval_data", "def unused"))
    found = cli("compile", tiny, *TRAIN)
    assert found.code == 0, found
    assert "eval_data" not in found.out
    assert "2 epochs, 12 steps" in found.out
    assert cli("compile", tiny, *TRAIN, "--resume", "--json").json["training"]["widths"] == []


def test_a_second_training_does_not_overwrite_the_first_but_may_go_on(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    assert cli("compile", tiny, *TRAIN).code == 0
    first = mbqc.load(tmp_path / "tiny.mbqc", backend="reference").program.tensors
    cli("compile", tiny, *TRAIN).refused(
        1, "tiny.training: there are checkpoints of an earlier training", "go on with --resume, or name an empty folder"
    )
    assert cli("compile", tiny, *TRAIN, "--resume").code == 0
    again = mbqc.load(tmp_path / "tiny.mbqc", backend="reference").program.tensors
    assert all(first[name].equal(again[name]) for name in first)
    cli("compile", tiny, *TRAIN, "--resume", "--seed", 1).refused(1, "belongs to another run")


@pytest.mark.parametrize(
    ("arguments", "code", "messages"),
    [
        (
            ["--passes", "quant", "--resume"],
            2,
            ["--passes quant: --training, --resume and --device are for"],
        ),
        (["--passes", "quant", "--training", "x"], 2, ["are for pipelines with train"]),
        (["--passes", "train"], 2, ["train needs 'quantized'"]),
        (["--passes", "quant,train,train"], 2, ["train appears twice"]),
        (["--passes", "quant,train{switch=hasb}"], 2, ["train needs 'sensitivity'"]),
        (
            ["--passes", "quant,train{bits=6}"],
            1,
            ["no activation scales for 6 bits", "bits=8:6:4:2"],
        ),
        (["--passes", "quant,train{rate=0}"], 2, ["pass train: rate=0.0 must be positive"]),
        (["--passes", "quant,train{rate=1e30}"], 1, ["pass train: the", "bits", "a lower rate or scale_rate"]),
        (["--passes", "quant,train", "--resume"], 1, ["tiny.training: there is no checkpoint to resume from"]),
        (["--passes", "quant,train", "--training", "tiny.py/x"], 1, ["tiny.py/x: cannot keep checkpoints here"]),
        (["--passes", "quant,train", "--training", "m.mbqc", "--out", "m.mbqc"], 2, ["cannot have one name"]),
    ],
)
def test_wrong_calls(
    cli: Cli, tiny: Path, tmp_path: Path, arguments: list[str], code: int, messages: list[str]
) -> None:
    cli("compile", tiny, "--backend", "reference", *arguments).refused(code, *messages)
    assert not list(tmp_path.glob("*.mbqc"))
    if code == 2:
        assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"tiny.py"}


@pytest.mark.parametrize(
    ("passes", "device", "message"),
    [
        ("quant,train", "cuda", "device: cuda: this PyTorch has no CUDA"),
        ("quant,train", "gpu", "device: 'gpu' is no device"),
        ("quant,train", "meta", "device: meta is not supported"),
        ("quant", "gpu", "device: 'gpu' is no device"),
    ],
)
def test_a_device_that_is_not_there(
    cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch, passes: str, device: str, message: str
) -> None:
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: False)
    cli("compile", tiny, "--passes", passes, "--device", device).refused(2, message, "try: ")


def test_a_device_is_what_training_runs_on(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device) -> None:
        raise PassError(f"asked for {device}")

    monkeypatch.setattr("mbqc.devices.find_device", torch.device)
    monkeypatch.setattr("mbqc.api.find_device", torch.device)
    monkeypatch.setattr("mbqc.passes.train.train.joined", refuse)
    cli("compile", tiny, "--passes", "quant,train", "--device", "cuda:1").refused(1, "pass train: asked for cuda:1")
    cli("compile", tiny, "--passes", "quant,train").refused(1, "pass train: asked for cpu")
    cli("compile", tiny, "--passes", "quant", "--device", "cuda:1").refused(2, "--device are for pipelines with train")
    user = load_user_model(str(tiny))
    with pytest.raises(PassError, match="asked for cuda:1"):
        mbqc.compile(user.model(), user.example_inputs(), "quant,train", labelled=user.training_data(), device="cuda:1")


STREAM = """
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from batches(1)
        raise OSError('the stream broke')

def train_data():
    return torch.utils.data.DataLoader(Stream(), batch_size=None)
"""
WRONG_FILES = {
    "no train_data": (TINY.replace("def train_data", "def unused"), "there is no training data", ""),
    "no batch": (TINY.replace("return list(batches(2))", "return []"), "training data is empty", ""),
    "labels": (
        TINY.replace("def loss", "def unused").replace("randint(0, 3", "randint(3, 6"),
        "is out of range: the model has 3 classes",
        "",
    ),
    "loss": (
        TINY.replace("return nn.functional.cross", "return target[99]  # "),
        "failed",
        "target[99]",
    ),
    "metric": (
        TINY + "\ndef metric(output, target):\n    return output[99]\n",
        "metric() raised Ind",
        "output[99]",
    ),
    "data": (TINY.replace("        yield", "        raise OSError('gone')\n        yield"), "OSError: gone", "gone"),
    "stream": (TINY + STREAM, "OSError: the stream broke", "the stream broke"),
    "data that exits": (
        TINY.replace("        yield", "        raise SystemExit\n        yield"),
        "() raised SystemExit",
        "SystemExit",
    ),
    "model that exits": (
        TINY.replace("        return self.fc(", "        raise SystemExit\n        return self.fc("),
        "the model fails on its example inputs: SystemExit",
        "SystemExit",
    ),
    "stream that exits": (
        TINY + STREAM.replace("OSError('the stream broke')", "SystemExit"),
        "raised SystemExit",
        "SystemExit",
    ),
    "loss that exits": (
        TINY.replace("return nn.functional.cross", "raise SystemExit  # "),
        "loss(output, target) failed: SystemExit",
        "SystemExit",
    ),
    "a target for a batch": (
        TINY.replace("return batches(3)", "return [(x, y.sum()) for x, y in batches(3)]"),
        "evaluation data, batch 0: the target is one number for the whole batch",
        "",
    ),
    "targets": (
        TINY.replace("return list(batches(2))", "return [x for x, _ in batches(2)]"),
        "there are no targets",
        "",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_model_file_that_is_wrong_is_told_with_its_line(cli: Cli, tiny: Path, tmp_path: Path, case: str) -> None:
    text, message, at = WRONG_FILES[case]
    tiny.write_text(text)
    passes = "quant,bncorrect,train{epochs=1}"
    line = f"{tiny}:{next(n for n, row in enumerate(text.splitlines(), 1) if at in row)}" if at else ""
    cli("compile", tiny, "--backend", "reference", "--passes", passes).refused(1, message, line)
    assert not list(tmp_path.glob("*.mbqc"))


def test_what_cannot_be_lowered_is_told_before_it_is_trained(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    text = TINY.replace(".mean((2, 3)))", ".mean((2, 3)) + torch.zeros(x.shape[0], 1))")
    tiny.write_text(text.replace("def loss(output, target):", "def loss(output, target):\n    assert False, 'trained'"))
    found = cli("compile", tiny, "--backend", "reference", "--passes", "quant,bncorrect,train")
    found.refused(1, "error: pass lower, node ")
    assert not (tmp_path / "tiny.training").exists()


def test_interrupting_saves_and_resuming_goes_on(tiny: Path, tmp_path: Path) -> None:
    text = TINY.replace("    return nn.functional", "    import time; time.sleep(0.02)\n    return nn.functional")
    tiny.write_text(text)
    call = [sys.executable, "-m", "mbqc", "compile", "tiny.py", "--backend", "reference", "--passes"]
    call += ["quant,train{epochs=200,checkpoint=1}"]
    with subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("tiny.training/step-*")) and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert "error: pass train: stopped by SIGTERM after " in err
    assert "  try: go on with --resume\n" in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*.mbqc"))
    assert list(tmp_path.glob("tiny.training/step-*"))


def test_the_pass_describes_all_its_options(cli: Cli) -> None:
    found = cli("passes", "train")
    assert found.code == 0
    described, listed = found.out.split("  Types and defaults:\n")
    options = [line.split(":")[0].strip() for line in listed.split("  Requires")[0].splitlines()]
    assert len(options) > 20
    assert all(f"      {name}: " in described for name in options)
    assert fits(found.out, 122)
