"""`mbqc compile`: what it makes and prints, and one message for everything that can be wrong with a model file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import mbqc
from tests.cli.conftest import TINY, Cli, fits

QUICK = ("--passes", "quant,bncorrect", "--backend", "reference")


def test_makes_an_artifact(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    found = cli("compile", tiny, "--backend", "reference")
    assert found.code == 0, found
    unsettled = "warning: traces had not settled after 64 probes: mind their standard errors, or allow more\n"
    assert found.err in ("", unsettled)
    assert found.out.startswith("tiny.mbqc: normalize,quant,bncorrect,hasb,lower\n")
    for word in ("conv.0", "linear", "sensitivity", "parameters", "bytes a parameter", "bncorrect 0."):
        assert word in found.out
    loaded = mbqc.load(tmp_path / "tiny.mbqc", backend="reference")
    assert list(loaded.layers) == ["conv.0", "mix", "fc"]
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"tiny.py", "tiny.mbqc"}


@pytest.mark.parametrize("option", ["--out", "-o"])
def test_the_artifact_goes_where_it_is_asked_for(cli: Cli, tiny: Path, tmp_path: Path, option: str) -> None:
    assert cli("compile", tiny, *QUICK, option, "own.mbqc").code == 0
    assert (tmp_path / "own.mbqc").is_file()
    assert not (tmp_path / "tiny.mbqc").exists()
    assert f" {option}" in cli("compile", "--help").out


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_tables_fit(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    table = cli("compile", tiny, "--backend", "reference").out.split("\n\n")[1].split("\n  pin:")[0]
    assert fits(table, columns)
    assert "…" not in table
    assert ("kernel" in table) == (columns == 120)


@pytest.mark.parametrize("columns", [60, 80])
def test_long_names_are_cut_in_front_and_numbers_never(
    cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    name = "a_very_long_name_" * 4
    tiny.write_text(tiny.read_text().replace("self.mix", f"self.{name}mix"))
    table = cli("compile", tiny, "--backend", "reference").out.split("\n\n")[1].split("\n  pin:")[0]
    assert fits(table, columns)
    head, _, *rows = table.splitlines()
    assert [len(row.split()) + (i == 1) for i, row in enumerate(rows)] == [len(head.split())] * 3
    assert [row.count("…") for row in rows] == [0, 1, 0]
    assert rows[1].split()[0].endswith("long_name_mix")


def test_json(cli: Cli, tiny: Path) -> None:
    tiny.write_text("print('loading')\n" + tiny.read_text())
    found = cli("compile", tiny, *QUICK, "--out", "m.mbqc", "--json")
    assert "loading" in found.err
    assert found.json["artifact"] == "m.mbqc"
    assert [row["layer"] for row in found.json["layers"]] == ["conv.0", "mix", "fc"]
    assert [row["pinned"] for row in found.json["layers"]] == [8, None, 8]
    assert found.json["layers"][1]["sensitivity"] is None
    assert set(found.json["layers"][1]["sqnr"]) == set("87654321")
    sizes = found.json["sizes"]
    assert sizes["weight_bytes"] == 9 * 4 + 4 * 6 + 6 * 3
    assert sizes["artifact_bytes"] == Path("m.mbqc").stat().st_size
    assert found.json["kernels"].keys() <= {"int64", "torch"}


def test_same_seed_same_artifact(cli: Cli, tiny: Path) -> None:
    for name in ("a.mbqc", "b.mbqc"):
        assert cli("compile", tiny, "--backend", "reference", "--seed", 3, "--out", name).code == 0
    a, b = (mbqc.load(name, backend="reference").program for name in ("a.mbqc", "b.mbqc"))
    assert a.listing == b.listing
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_dump(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    assert cli("compile", tiny, *QUICK, "--dump", "steps/here").code == 0
    names = sorted(os.listdir(tmp_path / "steps" / "here"))
    assert names == ["000_normalize.ir", "001_quant.ir", "002_bncorrect.ir", "003_lower.ir"]


def test_places_of_a_model(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "own_zoo").mkdir()
    (tmp_path / "own_zoo" / "net.py").write_text(TINY + "\ndef other():\n    return Net().eval()\n")
    for place, stem in (("own_zoo/net.py", "net"), ("own_zoo/net.py:other", "net"), ("own_zoo.net:other", "net")):
        (tmp_path / f"{stem}.mbqc").unlink(missing_ok=True)
        assert cli("compile", place, *QUICK).code == 0, place
        assert (tmp_path / f"{stem}.mbqc").exists()


def test_neighbours_can_be_imported_late(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "parts_of_net.py").write_text(TINY)
    text = "def model():\n    import parts_of_net\n    return parts_of_net.model()\n"
    text += "def example_inputs():\n    from parts_of_net import example_inputs\n    return example_inputs()\n"
    (tmp_path / "there" / "net.py").write_text(text)
    assert cli("compile", "there/net.py", *QUICK).code == 0


def test_warns_without_calibration_data(cli: Cli, tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace("def calibration_data", "def unused").replace("zeros(1", "ones(4"))
    found = cli("compile", tiny, *QUICK)
    assert found.err == "warning: no calibration data: the example inputs alone set every activation range\n"
    assert len(cli("compile", tiny, *QUICK, "--json").json["notes"]["warnings"]) == 1


def test_data_folder(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(tiny.read_text() + "\nimport os\nassert os.path.samefile(os.environ['MBQC_DATA'], 'here')\n")
    (tmp_path / "here").mkdir()
    assert cli("compile", tiny, *QUICK, "--data", "here").code == 0
    cli("compile", tiny, *QUICK, "--data", "nowhere").refused(2, "--data nowhere: there is no such folder")


def test_float_fallbacks_are_listed(cli: Cli, tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace(".mean((2, 3)))", ".mean((2, 3))).log_softmax(1)"))
    found = cli("compile", tiny, *QUICK, "--json").json
    assert any("log_softmax" in line for line in found["notes"]["fallbacks"])
    assert "operations in float\n" in cli("compile", tiny, *QUICK).out
    assert "layers left in float\n  mix: " in cli("compile", tiny, "--passes", "quant{skip=mix}").out


def line_of(path: Path, text: str) -> str:
    """`path:line` of the first line that holds `text`."""
    lines = path.read_text().splitlines()
    return f"{path}:{next(n for n, line in enumerate(lines, 1) if text in line)}"


WRONG_FILES = {
    "syntax": ("def model(:", "syntax error: "),
    "bytes": ("def model(): \0", "tiny.py: syntax error: source code string cannot contain null bytes"),
    "import": ("import nothing_of_that_name", "raised ModuleNotFoundError while it was imported"),
    "no model": (TINY.replace("def model", "def modell"), "there is no function model()"),
    "no inputs": (TINY.replace("def example_inputs", "def inputs"), "there is no function example_inputs()"),
    "not a function": (
        TINY.replace("def model():\n    return ", "model = "),
        "model is a module, expected a function that returns it",
    ),
    "a number": (TINY.replace("def loss", "loss = 3\ndef unused"), "loss is of type int, expected a function"),
    "raises": (
        TINY.replace("return Net().eval()", "raise OSError('no weights')"),
        "model() raised OSError: no weights",
    ),
    "exits": (TINY.replace("return Net().eval()", "raise SystemExit(3)"), "model() raised SystemExit: 3"),
    "arguments": (TINY.replace("def model()", "def model(size)"), "model() raised TypeError"),
    "no module": (
        TINY.replace("return Net().eval()", "return 3"),
        "model() returned an object of type int, expected a torch.nn.Module",
    ),
    "no tensor": (
        TINY.replace("torch.zeros(1, 1, 5, 5)", "5"),
        "example_inputs() returned an object of type int, expected a tensor",
    ),
    "no fit": (
        TINY.replace("torch.zeros(1, 1, 5, 5)", "torch.zeros(1, 2, 5, 5)"),
        "the example input torch.float32 (1, 2, 5, 5)",
    ),
    "forward": (TINY.replace("        return self.fc(", "        1 / 0\n        return self.fc("), "ZeroDivisionError"),
    "no layer": (TINY.replace("return Net().eval()", "return nn.ReLU()"), "no layer can be quantized"),
    "no batches": (TINY.replace("for x, _ in batches(2)", "for x in []"), "calibration data is empty"),
    "not finite": (
        TINY.replace("(x for x, _", "(x * torch.nan for x, _"),
        "calibration data, batch 0: an input holds NaN",
    ),
    "another shape": (TINY.replace("(x for x, _", "(x[:, :, 1:] for x, _"), "calibration data, batch 0: an input is"),
    "a tuple": (
        TINY.replace("    return (x for x, _ in batches(2))", "    return ()"),
        "calibration_data() returned an object of type tuple",
    ),
    "late": (
        TINY.replace("        yield", "        raise OSError('gone')\n        yield"),
        "train_data() raised OSError: gone",
    ),
    "labels": (
        TINY.replace("return list(batches(2))", "return [(torch.zeros(2, 1, 5, 5), 3)]"),
        "part 2 of 2 in a batch is of type int, not a torch.Tensor",
    ),
    "bad loss": (TINY.replace("return nn.functional.cross_entropy(output, target)", "return target[99]"), "loss"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_model_file(cli: Cli, tiny: Path, tmp_path: Path, case: str) -> None:
    text, message = WRONG_FILES[case]
    tiny.write_text(text)
    (tmp_path / "tiny.mbqc").write_bytes(b"old")
    found = cli("compile", tiny, "--backend", "reference")
    found.refused(1, message)
    assert (tmp_path / "tiny.mbqc").read_bytes() == b"old"


def test_errors_name_the_line(cli: Cli, tiny: Path) -> None:
    tiny.write_text(WRONG_FILES["raises"][0])
    cli("compile", tiny).refused(1, line_of(tiny, "no weights"))
    tiny.write_text(WRONG_FILES["late"][0])
    cli("compile", tiny).refused(1, line_of(tiny, "gone"))
    tiny.write_text(TINY.replace("return Net()", "import json; json.loads('{')"))
    cli("compile", tiny).refused(1, line_of(tiny, "json.loads"))


def test_misspelt_function(cli: Cli, tiny: Path) -> None:
    tiny.write_text(TINY.replace("def example_inputs", "def example_input"))
    cli("compile", tiny).refused(1, "did you mean example_input?")


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("quant,nosuch", "there is no pass 'nosuch'"),
        ("qant", "did you mean quant?"),
        ("quant{bit=4}", "there is no option 'bit'"),
        ("quant{bits=8,4}", "write lists with ':', as in bits=8:4"),
        ("quantbits=8", "the shell expands"),
        ("quant{bits=9}", "9"),
        ("quant{bits=x}", "'x' is not a value of type int:..."),
        ("bncorrect,quant", "bncorrect needs 'quantized'"),
        ("quant,lower,hasb", "lower must be the last pass"),
        ("quant,lower,lower", "lower must be the last pass, and appear once"),
        ("", "a name is missing"),
        ("missing.py:Pass", "there is no such file"),
        ("quant{", "unbalanced braces"),
    ],
)
def test_wrong_pipeline(cli: Cli, tiny: Path, tmp_path: Path, passes: str, message: str) -> None:
    found = cli("compile", tiny, "--passes", passes)
    found.refused(1 if "missing.py" in passes else 2, message)
    assert not list(tmp_path.glob("*.mbqc"))


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--out", "missing/m.mbqc"], 1, "missing/m.mbqc: cannot write"),
        (["--out", "tiny.py/m.mbqc"], 1, "tiny.py/m.mbqc: cannot write"),
        (["--out", "."], 1, ".: cannot write"),
        (["--dump", "tiny.py/x"], 1, "--dump tiny.py/x: cannot make the folder"),
        (["--backend", "gpu"], 2, "there is no backend 'gpu'"),
        (["--seed", "x"], 2, "--seed"),
        (["--seed", "-1"], 2, "--seed"),
        (["--seed", "99999999999999999999"], 2, "--seed"),
        (["--out", "tiny.py"], 2, "tiny.py: cannot write: it would replace a file that this command reads"),
    ],
)
def test_wrong_options(cli: Cli, tiny: Path, tmp_path: Path, options: list[str], code: int, message: str) -> None:
    cli("compile", tiny, *options).refused(code, message)
    assert not list(tmp_path.glob("*.mbqc"))
    assert tiny.read_text() == TINY


@pytest.mark.parametrize("place", ["missing.py", "missing", "missing.net:model", "tiny.py:nothing", "tiny.mbqc"])
def test_no_model(cli: Cli, tiny: Path, place: str) -> None:
    cli("compile", place).refused(1, "nothing" if "nothing" in place else place.split(":")[0])
