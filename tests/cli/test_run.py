"""`mbqc run`, and what it does with wrong artifacts, widths, inputs and outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import Cli, fits
from tests.samples import sample_compiled, sample_inputs

OUTPUTS = ("--output", "a.npy", "--output", "b.npy", "--output", "c.npy", "--backend", "reference")


def saved(tmp_path: Path, name: str = "a.npy") -> torch.Tensor:
    return torch.from_numpy(np.load(tmp_path / name))


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ([], 8),
        (["--bits", "3"], 3),
        (["--bits", "@mixed.json"], {"layer1": 2, ...: 4}),
        (["--budget", "mean=8"], 8),
        (["--budget", "mean=1"], 1),
    ],
)
def test_writes_what_a_call_gives(
    cli: Cli, artifact: Path, arrays: list[object], tmp_path: Path, options: list[str], bits: object
) -> None:
    (tmp_path / "mixed.json").write_text('{"layer1": 2, "...": 4}')
    found = cli("run", artifact, *arrays, *OUTPUTS, *options)
    assert found.code == 0, found
    expected = sample_compiled()(*sample_inputs(), bits=bits)  # type: ignore[arg-type]
    for name, tensor in zip(("a.npy", "b.npy", "c.npy"), expected, strict=True):
        assert torch.equal(saved(tmp_path, name), tensor)


def test_text(cli: Cli, artifact: Path, arrays: list[object], tmp_path: Path) -> None:
    (tmp_path / "mixed.json").write_text('{"layer1": 2, "layer2": 3}')
    found = cli("run", artifact, *arrays, *OUTPUTS, "--bits", "@mixed.json")
    assert found.out.splitlines() == [
        "8 bits: layer0, layer3",
        "3 bits: layer2",
        "2 bits: layer1",
        "mean: 2.31 bits a weight, pinned layers not counted",
        "a.npy: float32 2x5",
        "b.npy: float32 4",
        "c.npy: float32 2x2x4",
    ]
    assert fits(found.out)


def test_json(cli: Cli, artifact: Path, arrays: list[object]) -> None:
    found = cli("run", artifact, *arrays, *OUTPUTS, "--budget", "mean=4", "--json").json
    assert list(found["widths"]) == ["layer0", "layer1", "layer2", "layer3"]
    assert found["mean_bits"] <= 4
    assert found["outputs"][0] == {"path": "a.npy", "dtype": "float32", "shape": [2, 5]}


def test_threads(cli: Cli, artifact: Path, arrays: list[object], tmp_path: Path) -> None:
    assert cli("run", artifact, *arrays, *OUTPUTS, "--backend", "cpu", "--threads", 2).code == 0
    assert torch.equal(saved(tmp_path), sample_compiled()(*sample_inputs())[0])
    cli("run", artifact, *arrays, *OUTPUTS, "--threads", 5000).refused(2, "no running on 5000 threads")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--bits", "9"], 2, "from 1 to 8"),
        (["--bits", "0"], 2, "from 1 to 8"),
        (["--bits", "8:4"], 2, "'8:4' is no width"),
        (["--bits", "4", "--budget", "mean=3"], 2, "exclude each other"),
        (["--budget", "mean=0.5"], 2, "a mean of 0.5 bits cannot be reached, the smallest is 1"),
        (["--budget", "bytes=3"], 2, "'bytes=3' is no budget"),
        (["--budget", "mean=x"], 2, "mean=BITS, as in mean=3.5"),
        (["--bits", "@missing.json"], 2, "missing.json: cannot read: No such file or directory"),
        (["--bits", "@text.json"], 2, "text.json: is not JSON"),
        (["--bits", "@list.json"], 2, "list.json: must hold an object"),
        (["--bits", "@twice.json"], 2, "twice.json: is not JSON: 'layer1' is given twice"),
        (["--bits", "@layer.json"], 2, "did you mean layer"),
        (["--bits", "@width.json"], 2, "width 99 of layer1"),
        (["--bits", "@few.json"], 2, "layer 'layer2' is given no width"),
        (["--output", "d.npy"], 2, "the model has 3 output(s)"),
        (["--backend", "gpu"], 2, "there is no backend 'gpu'"),
        (["--input", "ids.npy"], 1, "takes 2 input(s) (v0, ids), 3 given"),
    ],
)
def test_wrong_options(
    cli: Cli, artifact: Path, arrays: list[object], tmp_path: Path, options: list[str], code: int, message: str
) -> None:
    files = {"list": [1], "layer": {"layer9": 2}, "width": {"layer1": 99}, "few": {"layer1": 2}}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "twice.json").write_text('{"layer1": 2, "layer1": 4, "...": 8}')
    cli("run", artifact, *arrays, *OUTPUTS, *options).refused(code, message)
    assert not list(tmp_path.glob("[abcd].npy"))


def write_inputs(folder: Path) -> None:
    np.save(folder / "double.npy", np.zeros((2, 3, 6, 6)))
    np.save(folder / "small.npy", np.zeros((2, 3, 5, 5), np.float32))
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(folder / "several.npz", a=np.zeros(2))
    (folder / "empty.npy").touch()
    (folder / "text.npy").write_text("hello")
    (folder / "cut.npy").write_bytes((folder / "small.npy").read_bytes()[:200])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.npy", "missing.npy: there is no such file"),
        ("empty.npy", "not a readable .npy file"),
        ("text.npy", "not a readable .npy file"),
        ("cut.npy", "not a readable .npy file"),
        ("objects.npy", "not a readable .npy file"),
        ("several.npz", "holds several arrays"),
        (".", "not a readable .npy file"),
        ("double.npy", "input v0: has dtype torch.float64, expected torch.float32 Nx3x6x6"),
        ("small.npy", "input v0: has shape (2, 3, 5, 5)"),
        ("ids.npy", "input v0: has dtype torch.int64"),
    ],
)
def test_wrong_input(cli: Cli, artifact: Path, arrays: list[object], tmp_path: Path, name: str, message: str) -> None:
    write_inputs(tmp_path)
    found = cli("run", artifact, "--input", name, *arrays[2:], *OUTPUTS)
    found.refused(1, message)
    assert not (tmp_path / "a.npy").exists()


def test_index_outside_its_table(cli: Cli, artifact: Path, arrays: list[object], tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.full((2, 2), 100))
    cli("run", artifact, *arrays, *OUTPUTS).refused(1, "aten.embedding.default failed")


@pytest.mark.parametrize("place", ["missing/a.npy", "image.npy/a.npy", "."])
def test_no_place_for_the_output(cli: Cli, artifact: Path, arrays: list[object], tmp_path: Path, place: str) -> None:
    outputs = ("--output", place, *OUTPUTS[2:])
    cli("run", artifact, *arrays, *outputs).refused(1, f"{place}: cannot write")
    assert not (tmp_path / "b.npy").exists()


@pytest.mark.parametrize("place", ["image.npy", "ids.npy", "the artifact"])
def test_what_is_read_is_not_replaced(
    cli: Cli, artifact: Path, arrays: list[object], tmp_path: Path, place: str
) -> None:
    path = artifact if place == "the artifact" else tmp_path / place
    before = path.read_bytes()
    found = cli("run", artifact, *arrays, "--output", os.path.relpath(path), *OUTPUTS[2:])
    found.refused(2, "cannot write: it would replace a file that this command reads")
    assert path.read_bytes() == before
    assert not (tmp_path / "b.npy").exists()


def test_two_outputs_in_one_file(cli: Cli, artifact: Path, arrays: list[object], tmp_path: Path) -> None:
    found = cli("run", artifact, *arrays, *OUTPUTS[:4], "--output", tmp_path / "b.npy", *OUTPUTS[6:])
    found.refused(2, f"{tmp_path / 'b.npy'}: two outputs cannot go into one file")
    assert not list(tmp_path.glob("[abc].npy"))


def test_a_budget_without_sensitivities_says_so(cli: Cli, artifact: Path, arrays: list[object], tiny: Path) -> None:
    quick = ("--backend", "reference")
    assert cli("compile", tiny, "--passes", "quant", *quick).code == 0
    np.save("x.npy", np.zeros((1, 1, 5, 5), np.float32))
    call = ("run", "tiny.mbqc", "--input", "x.npy", "--output", "y.npy", "--budget", "mean=3", *quick)
    assert cli(*call).err == "warning: no sensitivity was measured (the pass hasb does it): all layers count alike\n"
    assert cli("compile", tiny, *quick).code == 0
    assert cli(*call).err == ""


def test_full_disk_leaves_the_old_output(
    cli: Cli, artifact: Path, arrays: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "a.npy").write_bytes(b"old")
    before = sorted(os.listdir(tmp_path))
    cli("run", artifact, *arrays, *OUTPUTS).refused(1, "a.npy: cannot write: No space left on device")
    assert (tmp_path / "a.npy").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
@pytest.mark.parametrize("command", ["run", "inspect", "bench", "eval"])
def test_damaged_artifact(
    cli: Cli, artifact: Path, arrays: list[object], tiny: Path, damage: str, command: str
) -> None:
    content = bytearray(artifact.read_bytes())
    content[-100] ^= 4
    damaged = {"cut": content[:500], "flipped": content, "empty": b"", "other": b"PK\3\4 not ours"}[damage]
    artifact.write_bytes(damaged)
    rest = {"run": (*arrays, *OUTPUTS), "eval": (tiny,)}.get(command, ())
    found = cli(command, artifact, *rest)
    found.refused(1, str(artifact), "damaged or changed" if damage == "flipped" else "not a readable artifact")
