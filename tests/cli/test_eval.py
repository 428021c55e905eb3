"""`mbqc eval`: numbers that are right, and what it does with wrong data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import TINY, Cli, fits

COMPILE = ("--passes", "quant,bncorrect", "--backend", "reference", "--out", "m.mbqc")
EVAL = ("--backend", "reference")


@pytest.fixture
def compiled(cli: Cli, tiny: Path) -> str:
    assert cli("compile", tiny, *COMPILE).code == 0
    return "m.mbqc"


def test_table(cli: Cli, compiled: str, tiny: Path) -> None:
    found = cli("eval", compiled, tiny, *EVAL)
    assert found.code == 0, found
    assert fits(found.out)
    rows = [line.split()[0] for line in found.out.splitlines()[2:11]]
    assert rows == ["float", *"87654321"]
    assert "24 samples" in found.out
    assert "top-1 accuracy in percent (the model file has no metric)" in found.out


def test_numbers(cli: Cli, compiled: str, tiny: Path) -> None:
    found = cli("eval", compiled, tiny, *EVAL, "--json", "--bits", "8:1").json
    exact, best, worst = found["rows"]
    assert (exact["bits"], exact["agreement"], exact["sqnr"]) == ("float", None, None)
    assert 0 <= exact["metric"] <= 100
    assert best["agreement"] > 90
    assert best["sqnr"] > 25 > worst["sqnr"]


def test_own_metric_gets_everything_at_once(cli: Cli, compiled: str, tiny: Path) -> None:
    tiny.write_text(
        f"{TINY}\n"
        "def metric(output, target):\n"
        "    'Samples.'\n"
        "    assert output.shape == (24, 3)\n"
        "    return len(target)\n"
    )
    found = cli("eval", compiled, tiny, *EVAL, "--json", "--bits", "4").json
    assert [row["metric"] for row in found["rows"]] == [24.0, 24.0]
    assert found["metric"] == "Samples"


def test_a_small_metric_is_told_apart(cli: Cli, compiled: str, tiny: Path) -> None:
    tiny.write_text(f"{TINY}\ndef metric(output, target):\n    return -1e-5 * output.square().mean()\n")
    found = cli("eval", compiled, tiny, *EVAL, "--bits", "8:1")
    shown = [float(line.split()[1]) for line in found.out.splitlines()[2:5]]
    rows = cli("eval", compiled, tiny, *EVAL, "--bits", "8:1", "--json").json["rows"]
    assert shown == [pytest.approx(row["metric"], rel=1e-3) for row in rows]
    assert len(set(shown)) == 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("[x for x, _ in batches(3)]", "the data has no targets"),
        ("[x if i else (x, y) for i, (x, y) in enumerate(batches(3))]", "batch 1 of the data has no target"),
        (
            "[(x, y.float()) for x, y in batches(3)]",
            "the data is no classification; define metric(output, target)",
        ),
    ],
)
def test_without_metric(cli: Cli, compiled: str, tiny: Path, data: str, reason: str) -> None:
    tiny.write_text(TINY.replace("return batches(3)", f"return {data}"))
    found = cli("eval", compiled, tiny, *EVAL, "--bits", "8")
    assert "metric" not in found.out.splitlines()[0]
    assert f"  no metric: {reason}.\n" in found.out
    assert fits(found.out)


def test_file_of_widths(cli: Cli, compiled: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed.json").write_text('{"mix": 8, "...": 8}')
    found = cli("eval", compiled, tiny, *EVAL, "--bits", "8:@mixed.json", "--json").json
    _, uniform, mixed = found["rows"]
    assert mixed == {**uniform, "bits": "mixed.json"}


def test_another_model_is_noticed(cli: Cli, compiled: str, tiny: Path) -> None:
    tiny.write_text(TINY.replace("nn.Conv2d(4, 6, 1)", "nn.Conv2d(4, 6, 1, bias=False)"))
    found = cli("eval", compiled, tiny, *EVAL, "--bits", "8")
    assert found.code == 0
    assert found.err.startswith("warning: ")
    assert "the artifact was made from one of" in found.err
    tiny.write_text(TINY.replace("nn.Linear(6, 3)", "nn.Linear(6, 4)"))
    cli("eval", compiled, tiny, *EVAL, "--bits", "8").refused(1, "the model gives outputs of shape [(8, 4)]")


def test_threads(cli: Cli, compiled: str, tiny: Path) -> None:
    one, two = (cli("eval", compiled, tiny, "--bits", "8:2", "--threads", count, "--json") for count in (1, 2))
    assert one.json == two.json
    cli("eval", compiled, tiny, "--threads", 0).refused(2, "--threads")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def eval_data", "def evaldata", "there is no function eval_data()"),
        ("return batches(3)", "return []", "evaluation data is empty"),
        ("return batches(3)", "return 3", "eval_data() returned an object of type int"),
        ("return batches(3)", "return [torch.zeros(2, 1, 4, 4)]", "eval_data(), batch 0: an input is"),
        (
            "return batches(3)",
            "return [(x, y.sum()) for x, y in batches(3)]",
            "eval_data(), batch 0: the target is one number for the whole batch",
        ),
        (
            "return batches(3)",
            "return [(x, y if i else y[:, None]) for i, (x, y) in enumerate(batches(3))]",
            "eval_data(), batch 1: the target has shape (8,), that of batch 0 (8, 1)",
        ),
        (
            "return batches(3)",
            "return [(x, y.numpy()) for x, y in batches(3)]",
            "eval_data(), batch 0: part 2 of 2 in a batch is of type ndarray, not a torch.Tensor",
        ),
        ("return batches(3)", "return ['x']", "a batch is of type str"),
        ("return batches(3)", "return [torch.full((2, 1, 5, 5), torch.inf)]", "NaN or infinity"),
        ("def loss", "def metric(output, target): return output.nothing\ndef loss", "metric() raised AttributeError"),
        (
            "def loss",
            "def metric(output, target): return 'good'\ndef loss",
            "metric() returned an object of type str, expected a number",
        ),
        ("return self.fc(", "return 1 / 0 + self.fc(", "forward() raised ZeroDivisionError"),
        ("return self.fc(", "raise SystemExit\n        return self.fc(", "forward() raised SystemExit"),
        ("return batches(3)", "yield from batches(1)\n    raise SystemExit", "eval_data() raised SystemExit"),
    ],
)
def test_wrong_data(cli: Cli, compiled: str, tiny: Path, old: str, new: str, message: str) -> None:
    assert old in TINY
    tiny.write_text(TINY.replace(old, new))
    cli("eval", compiled, tiny, *EVAL, "--bits", "8").refused(1, message)


@pytest.mark.parametrize("bits", ["9", "8:x", "@missing.json", "8:4:0"])
def test_wrong_widths(cli: Cli, compiled: str, tiny: Path, bits: str) -> None:
    tiny.write_text("raise RuntimeError('not even imported')")
    found = cli("eval", compiled, tiny, *EVAL, "--bits", bits)
    found.refused(2)
    assert "imported" not in found.err
