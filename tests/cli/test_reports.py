"""`mbqc inspect` and `passes`: what they print."""

from __future__ import annotations

from pathlib import Path

import pytest

from mbqc.api import pipeline_of
from mbqc.cli.output import format_bytes, format_count, format_db, format_metric
from mbqc.cli.progress import show_progress
from mbqc.lookup import pass_table
from tests.cli.conftest import Cli, fits
from tests.samples import LAYERS


def test_inspect(cli: Cli, artifact: Path) -> None:
    found = cli("inspect", artifact)
    assert found.code == 0
    assert fits(found.out)
    for text in ("v0 f32[Nx3x6x6], ids i64[Nx2]", "quant,lower", "1 000", "exact", "0 ± 2.0e-01", "2.0e+00 ±  5%"):
        assert text in found.out
    assert "layers left in float\n  head: skip=head\n" in found.out
    assert "operations in float\n  w3: aten.softmax.int runs in float\n" in found.out
    assert found.err == "warning: no calibration data: the example inputs alone set every activation range\n"


def test_inspect_json(cli: Cli, artifact: Path) -> None:
    found = cli("inspect", artifact, "--json")
    assert found.err == ""
    assert [row["layer"] for row in found.json["layers"]] == list(LAYERS)
    assert found.json["layers"][1]["sqnr"] == {"8": None}
    assert found.json["program"] is None
    assert (found.json["operations"]["conv"], found.json["operations"]["grouped"]) == (2, 1)


def test_inspect_program(cli: Cli, artifact: Path) -> None:
    found = cli("inspect", artifact, "--program")
    assert found.out.startswith("program { ladder=round\n  %v0 = input")
    assert cli("inspect", artifact, "--program", "--json").json["program"] == found.out


def test_inspect_memory(cli: Cli, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cli("inspect", artifact, "--bits", "8:4")
    assert "in the cpu backend after a call at 8, 4 bits: " in " ".join(found.out.split())
    memory = cli("inspect", artifact, "--json").json["memory"]
    assert memory["tensors as stored"] > 0
    assert memory["arena at batch 1"] > 0
    cli("inspect", artifact, "--bits", "9").refused(2, "width 9")
    monkeypatch.setenv("MBQC_CPU_ISA", "sse9")
    found = cli("inspect", artifact)
    assert found.code == 0
    assert "in memory   unknown: MBQC_CPU_ISA=sse9 is no instruction set" in found.out
    assert cli("inspect", artifact, "--json").json["memory"] is None


def test_passes(cli: Cli) -> None:
    found = cli("passes")
    for name in pass_table():
        assert f"\n{name}: " in f"\n{found.out}"
    assert "bits: int:...  = 8:4:2" in found.out
    assert fits(found.out)
    listed = cli("passes", "--json").json["passes"]
    assert [row["name"] for row in listed] == list(pass_table())


def test_defaults_are_printed_as_they_are_written(cli: Cli) -> None:
    assert "skip: text:...  = :\n" in cli("passes", "quant").out
    assert "coreset: none|random|tdds|el2n|entropy|forgetting  = none\n" in cli("passes", "train").out
    pipeline_of("quant{skip=:},train{coreset=none}")  # a default as it is printed
    assert "written path/file.py:Name" in cli("passes", "mine.py").err


def test_one_pass(cli: Cli) -> None:
    found = cli("passes", "hasb")
    assert found.out.startswith("hasb\n  Annotates each layer")
    assert "tolerance: float  = 0.05" in found.out
    assert "Requires: quantized" in found.out
    cli("passes", "hasbb").refused(2, "there is no pass 'hasbb'", "did you mean hasb?")


def test_own_pass(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from mbqc.pipeline import Pass\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Pass):\n"
        '    """Does nothing."""\n'
        "    strength: float\n"
        "    name = 'mine'\n"
        "    def run(self, graph, context):\n"
        "        return graph\n"
    )
    found = cli("passes", "mine.py:Mine")
    assert "Does nothing." in found.out
    assert "strength: float  required" in found.out
    cli("passes", "mine.py:dataclass").refused(2, "is no pass")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1234, "1.23 kB"), (999_499, "999 kB"), (3_500_000, "3.5 MB")],
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_metrics() -> None:
    numbers = (97.346, 100.0, 0.0, 1234.5, 0.97346, -0.0012345, 2.34567, float("nan"), None)
    assert [format_metric(x, percent=True) for x in numbers[:3]] == ["97.35", "100.00", "0.00"]
    found = [format_metric(x, percent=False) for x in numbers]
    assert found == ["97.35", "100.00", "0", "1234.50", "0.9735", "-0.001234", "2.346", "nan", "-"]


def test_numbers() -> None:
    assert format_count(3504872) == "3 504 872"
    assert [format_db(x) for x in (3.14159, -0.5, float("inf"), float("nan"), None)] == [
        "3.1",
        "-0.5",
        "exact",
        "-",
        "-",
    ]


def test_progress_of_quick_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("working", 2) as advance:
        advance()
        advance()
    assert capsys.readouterr() == ("", "")


def test_progress_of_long_work(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line after two seconds, then each time the work has taken twice as long."""
    now = iter([0.0, 1.0, 2.5, 4.0, 5.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with show_progress("working", 9) as advance:
        for _ in range(4):
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["working: 2 of 9 after 2 s", "working: 4 of 9 after 5 s"]
