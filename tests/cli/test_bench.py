"""`mbqc bench`: what it measures and prints. How long anything takes is not tested."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mbqc.cli.against import prepare, regroup
from mbqc.cli.layers import OperationTiming, explain
from mbqc.cli.timing import Spent, in_turn, timed
from mbqc.errors import UsageError
from mbqc.peers import PEERS, Subject, parse_peers
from tests.cli.conftest import Cli, fits
from tests.samples import sample_program

QUICK = ("--bits", "8:4", "--repeat", 5)


def test_calls(cli: Cli, artifact: Path) -> None:
    options = (*QUICK, "--batch", 2, "--backend", "reference")
    found = cli("bench", artifact, *options)
    assert found.code == 0
    assert fits(found.out)
    assert "reference backend (int64, float32, torch), batch 2, 1 thread, 5 calls a row." in found.out
    answer = cli("bench", artifact, *options, "--json").json
    rows = answer["rows"]
    assert [(row["runtime"], row["bits"]) for row in rows] == [("mbqc", "8"), ("mbqc", "4")]
    assert rows[0]["speed"] == 1.0
    assert 0 < rows[1]["fifth_percentile_ms"] <= rows[1]["median_ms"]
    assert answer["layers"] is None


def test_calls_on_threads(cli: Cli, artifact: Path) -> None:
    before = torch.get_num_threads()
    assert ", batch 1, 2 threads, 5 calls a row." in cli("bench", artifact, *QUICK, "--threads", 2).out
    assert torch.get_num_threads() == before


def test_wrong_widths(cli: Cli, artifact: Path) -> None:
    cli("bench", artifact, "--bits", "8:12").refused(2, "width 12 of all layers is not a whole number from 1 to 8")


@pytest.mark.parametrize("batch", [10**12, 10**18, 10**30])
def test_inputs_that_memory_cannot_hold(cli: Cli, artifact: Path, batch: int) -> None:
    cli("bench", artifact, "--batch", batch).refused(2, f"--batch: {batch} samples do not fit into memory")


def test_layers(cli: Cli, artifact: Path) -> None:
    found = cli("bench", artifact, *QUICK, "--layers")
    assert found.code == 0
    assert fits(found.out)
    for text in (
        "8 bits\n",
        "4 bits\n",
        "GOP/s",
        "GB/s",
        "% compute",
        "% memory",
        "limits measured here: ",
        "operations ms",
    ):
        assert text in found.out


def test_layers_json(cli: Cli, artifact: Path) -> None:
    layers = cli("bench", artifact, *QUICK, "--layers", "--json").json["layers"]
    assert layers["repeats"] == 5
    assert all(peak["gops"] > 0 for peak in layers["ceilings"]["peaks"].values())
    for profile, bits in zip(layers["widths"], ("8", "4"), strict=True):
        rows = profile["operations"]
        assert profile["bits"] == bits
        assert len(rows) == len(sample_program().listing.operations)
        assert profile["total_us"] == pytest.approx(sum(row["median_us"] for row in rows))
        assert {row["limit"] for row in rows} <= {"compute", "memory"}
        assert [row["bits"] for row in rows if row["operation"] == "layer1"] == [int(bits)]
        assert all((row["gops"] is None) == (row["bits"] is None) for row in rows)


def test_layers_without_limits(cli: Cli, artifact: Path) -> None:
    found = cli("bench", artifact, *QUICK, "--layers", "--backend", "reference")
    assert fits(found.out)
    assert "of limit" not in found.out
    assert "aten.softmax.int" in cli("bench", artifact, *QUICK, "--layers", "--backend", "reference", "--json").out


def row(us: float, limit: str, floor: float) -> OperationTiming:
    return OperationTiming("a", "conv", 8, "vnni", us, 1.0, 1.0, limit, floor, 1.0)  # type: ignore[arg-type]


def test_reasons() -> None:
    above = [row(10, "compute", 8), row(10, "memory", 8), row(10, "compute", 1)]
    assert explain(above, above) == (
        ": 33% of the time is bound by compute, at 80% of the peak of their kernels, which is the same; "
        "33% of the time is bound by memory, at 80% of the read bandwidth, which is the same; "
        "33% stays below half of both limits"
    )
    packed = [row(10, "memory", 6)]
    assert explain(packed, [row(10, "memory", 9)]) == (
        ": 100% of the time is bound by memory, at 60% of the read bandwidth, which allows 1.50 times as much"
    )


def test_calls_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbqc.cli.timing.TURN", 2)
    monkeypatch.setattr("mbqc.cli.timing.WARM_UP", 1)
    order: list[str] = []

    def call(name: str) -> int:
        order.append(name)
        return len(order)

    found = in_turn("counting", {"a": lambda: call("a"), "b": lambda: call("b")}, 3)
    assert "".join(order) == "ab" + "ab" + "aaa" + "bbb" + "aa" + "bb"  # twice before; each turn warms up first
    assert found == {"a": [6, 7, 12], "b": [9, 10, 14]}


def test_time_of_a_call() -> None:
    calls: list[int] = []
    assert timed(lambda: calls.append(1))() >= 0
    assert len(calls) == 1


def test_percentiles() -> None:
    assert Spent.of([float(i) for i in range(100, 0, -1)]) == Spent(50.5, 6.0)
    assert Spent.of([3.0]) == Spent(3.0, 3.0)


def batches(*sizes: int) -> list[tuple[torch.Tensor, ...]]:
    numbers = torch.arange(sum(sizes)).split(list(sizes))
    return [(part, 10 * part) for part in numbers]


@pytest.mark.parametrize(
    ("sizes", "size", "expected"),
    [
        ((2, 3), 1, [[0], [1], [2], [3], [4]]),
        ((2, 3), 2, [[0, 1], [2, 3]]),
        ((2, 1), 7, [[0, 1, 2, 0, 1, 2, 0]]),
    ],
)
def test_samples_in_batches_of_one_size(sizes: tuple[int, ...], size: int, expected: list[list[int]]) -> None:
    found = regroup(batches(*sizes), size)
    assert [first.tolist() for first, _ in found] == expected
    assert all(torch.equal(10 * first, second) for first, second in found)


def test_names_of_runtimes() -> None:
    assert parse_peers("torch, openvino,torch") == ("torch", "openvino")
    with pytest.raises(UsageError, match=r"no runtime 'tflite'(.|\n)*torch, onnxruntime, openvino"):
        parse_peers("torch,tflite")


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One runtime that is not installed, and one that answers twice what torch does, printing as it goes."""
    (tmp_path / "absent_peer.py").write_text("import a_runtime_nobody_has\n")
    (tmp_path / "double_peer.py").write_text(
        "from mbqc.peers.eager import runners as eager\n"
        "def runners(subject):\n"
        "    print('quantizing')\n"
        "    bind = eager(subject)['torch float32']\n"
        "    def twice(inputs):\n"
        "        call = bind(inputs)\n"
        "        return lambda: [(2 * part).numpy() for part in call()]\n"
        "    return {'double int8': twice}\n"
    )
    (tmp_path / "failing_peer.py").write_text("def runners(subject): raise NotImplementedError('no Mish\\nmore')\n")
    for name in ("absent", "double", "failing"):
        monkeypatch.setitem(PEERS, name, f"{name}_peer")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("peers")
def test_against(cli: Cli, tiny: Path) -> None:
    assert cli("compile", tiny, "--passes", "quant", "--out", "tiny.mbqc").code == 0
    options = ("tiny.mbqc", tiny, *QUICK, "--against", "torch,absent,double,failing")
    found = cli("bench", *options)
    assert found.code == 0
    assert fits(found.out)
    assert "quantizing" not in found.out
    text = " ".join(found.out.split())
    for part in ("mbqc 8 bits", "torch float32", "double int8", " times as fast as double int8", "SQNR dB"):
        assert part in text
    assert "absent: not compared, a_runtime_nobody_has is not installed" in text
    assert "failing: not compared, it cannot run this model: NotImplementedError: no Mish." in text
    answer = cli("bench", *options, "--json").json
    rows = {row["runtime"]: row for row in answer["rows"][1:]}
    assert rows["torch float32"]["sqnr"] is None  # none at all: infinite
    assert rows["double int8"]["sqnr"] == pytest.approx(0.0, abs=1e-6)
    assert rows["double int8"]["agreement"] == 100.0
    assert list(answer["missing"]) == ["absent", "failing"]


def test_a_peer_that_fails_at_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(torch.nn.Linear(3, 2), [(torch.zeros(1, 4),)], 1)
    runners, missing = prepare(["torch"], subject)
    assert runners == {}
    assert "RuntimeError" in missing["torch"]


def test_against_another_model(cli: Cli, tiny: Path, artifact: Path) -> None:
    found = cli("bench", artifact, tiny, *QUICK, "--against", "torch")
    found.refused(1, "takes 2 input(s)")
    assert "the artifact was made from one of 1000" in found.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--against", "torch"], "the model file is missing"),
        (["a", "model.py"], "a model file is for comparing"),
        (["a", "model.py", "--against", "tflite"], "there is no runtime 'tflite'"),
        (["a", "model.py", "--against", ""], "there is no runtime ''"),
        (["a", "--threads", "0"], "--threads"),
        (["a", "--repeat", "0"], "--repeat"),
    ],
)
def test_wrong_usage(cli: Cli, arguments: list[str], message: str) -> None:
    cli("bench", *arguments).refused(2, message)
