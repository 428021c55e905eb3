"""The README's Python runs, its commands exist, and CI calls them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run(code: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_command_shown_is_a_command() -> None:
    shown = set(re.findall(r"\bmbqc (\w+) ", "\n".join(blocks("sh"))))
    done = subprocess.run([sys.executable, "-m", "mbqc", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert shown == {"compile", "run", "eval", "bench", "inspect", "passes"}
    assert all(re.search(rf"\b{command}\b", done.stdout) for command in shown)


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    install, tests = (text.strip() for text in blocks("sh")[:2])
    for part in [*install.split(" && ")[1:], *tests.split(" && ")[1:]]:
        words = part.replace("digits.mbqc", '"$environment/digits.mbqc"')
        assert words in script, f"{part!r} is in the README but not in .ci/run"
