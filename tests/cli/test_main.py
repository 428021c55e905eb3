"""What all commands share: help, wrong usage, exit codes, and errors as text and as JSON."""

from __future__ import annotations

import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mbqc.cli import main as entry
from tests.cli.conftest import Cli, fits

COMMANDS = ("compile", "run", "eval", "bench", "inspect", "passes")
MBQC = (sys.executable, "-c", "from mbqc.cli import main; main()")
"""The entry point in a process of its own."""

HELP_SECONDS = 0.5


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_is_quick_and_fits(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*MBQC, *command, "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # of the processor, which a busy machine does not change
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < HELP_SECONDS
    assert done.stdout.startswith("Usage: mbqc")
    assert fits(done.stdout)
    assert done.stderr == ""


def test_help_imports_no_torch() -> None:
    code = "import sys; from mbqc.cli.main import run_command; run_command(['run', '--help'])"
    check = "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{code}; {check}"], check=True, capture_output=True)


def test_version_and_bare_call(cli: Cli) -> None:
    assert cli("--version").out == version("mbqc") + "\n"
    bare = cli()
    assert bare.code == 0
    assert all(f"\n  {name} " in bare.out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["run"], "Missing argument"),
        (["inspect", "a", "b"], "unexpected extra argument"),
        (["inspect", "a", "--bitz"], "No such option"),
        (["bench", "a", "--repeat", "x"], "--repeat"),
        (["bench", "a", "--batch", "0"], "--batch"),
        (["run", "a", "--input", "x.npy"], "--output"),
        (["bench", "a", "--bits", "4,2"], "separate widths by ':', as in 8:4:2"),
        (["bench", "a", "--bits", "four"], "'four' is no width"),
        (["bench", "a", "--bits", ""], "'' is no width"),
    ],
)
def test_wrong_usage(cli: Cli, arguments: list[str], message: str) -> None:
    cli(*arguments).refused(2, message)
    as_json = cli(*arguments, "--json")
    assert as_json.code == 2
    assert as_json.json["error"]["exit_code"] == 2


def test_error_as_json(cli: Cli, tmp_path: Path) -> None:
    found = cli("inspect", "missing.mbqc", "--json")
    found.refused(1, "error: missing.mbqc: there is no such file")
    expected = {"type": "ArtifactError", "message": "there is no such file", "where": "missing.mbqc"}
    assert found.json == {"error": {**expected, "hint": None, "exit_code": 1}}


def test_hint_stands_on_its_own_line(cli: Cli, artifact: Path) -> None:
    found = cli("bench", artifact, "--backend", "gpu")
    assert found.err == "error: there is no backend 'gpu'\n  try: one of cpu, reference\n"


def test_unexpected_error(cli: Cli, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise KeyError("x")

    monkeypatch.setattr("mbqc.artifact.read", broken)
    found = cli("inspect", artifact)
    assert found.code == 1
    assert "error: internal error, please report it: KeyError: 'x'" in found.err
    assert "Traceback" in found.err


def test_interrupt_is_quiet(cli: Cli, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mbqc.artifact.read", interrupted)
    found = cli("inspect", artifact)
    assert found.code == 130
    assert found.out + found.err.strip() == ""


def test_reader_that_leaves(artifact: Path) -> None:
    """As in `mbqc inspect m.mbqc --program | head -0`."""
    command = [*MBQC, "inspect", str(artifact), "--program"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize("options", ["", "--json", "--program"])
def test_closed_output(artifact: Path, options: str) -> None:
    """As in `mbqc inspect m.mbqc >&-`."""
    script = f'exec "$@" inspect {artifact} {options} >&-'
    done = subprocess.run(["sh", "-c", script, "sh", *MBQC], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write the answer: standard output is closed\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("options", [(), ("--json",), ("--program",)])
def test_answer_that_cannot_be_written(artifact: Path, options: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*MBQC, "inspect", str(artifact), *options], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: cannot write the answer: No space left on device"
    assert "Traceback" not in done.stderr


def test_entry_point_exits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        entry(["inspect", "missing.mbqc"])
    assert caught.value.code == 1
