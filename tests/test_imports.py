"""Who may import whom, what importing costs, and that everything public says what it is."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"mbqc": "mbqc", "passes": "mbqc.passes", "backends": "mbqc.backends"}
"""Folder to the name under which it is imported."""

LOOKUPS = {"mbqc.lookup", "mbqc.runtime"}
"""The modules that find passes and backends by name, when they are asked for."""


def module_name(file: Path) -> str:
    folder, *rest = file.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *rest]).removesuffix(".__init__")


MODULES = {module_name(f): f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*.py"))}
TREES = {name: ast.parse(file.read_text()) for name, file in MODULES.items()}
every_module = pytest.mark.parametrize("module", MODULES)


def imported(module: str, tree: ast.Module, is_package: bool) -> set[str]:
    """Everything that a module imports anywhere in it, `from a import b` as `a.b`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def named(tree: ast.Module) -> set[str]:
    """Dotted names of mbqc in strings that are no docstrings, formatted ones included: imports by name."""
    texts = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in texts]
    return {s for s in strings if isinstance(s, str) and s.startswith(("mbqc.passes", "mbqc.backends"))}


def forbidden(module: str, target: str) -> bool:
    """Whether `module` must not import `target`."""
    families = ("mbqc.passes", "mbqc.backends")
    if target.split(".")[0] in ("passes", "backends", "tests"):
        return True  # they install as parts of mbqc, and tests do not install
    family = next((f for f in families if target == f or target.startswith(f"{f}.")), None)
    if family is None:
        return False
    own = ".".join(module.split(".")[:3])  # one pass, or one backend
    return not (own.startswith(f"{family}.") and (target == own or target.startswith(f"{own}.")))


@pytest.mark.parametrize(
    ("module", "source", "is_wrong"),
    [
        ("mbqc.api", "from mbqc import passes", True),
        ("mbqc.api", "def f():\n    import mbqc.backends.cpu", True),
        ("mbqc.pipeline.pipeline", "from ..passes.quant import Quant", True),
        ("mbqc.passes.hasb", "from mbqc.passes.quant.roles import Role", True),
        ("mbqc.passes.hasb", "from mbqc.passes import quant", True),
        ("mbqc.passes.hasb", "from .quant import Quant", True),
        ("mbqc.passes.hasb", "from mbqc.backends import reference", True),
        ("mbqc.passes.hasb", "from passes import quant", True),
        ("mbqc.passes.quantile", "from mbqc.passes.quant import Quant", True),
        ("mbqc.passes.quant.plan", "from mbqc.passes.quant.roles import Role", False),
        ("mbqc.passes.quant.plan", "from .roles import Role", False),
        ("mbqc.backends.cpu.plan", "from mbqc.backends import reference", True),
        ("mbqc.backends.cpu.plan", "from mbqc.passes.quant import Quant", True),
        ("mbqc.backends.cpu.plan", "from mbqc.backends.cpu import abi\nimport mbqc.numerics", False),
    ],
)
def test_the_rule_sees_every_spelling(module: str, source: str, is_wrong: bool) -> None:
    found = imported(module, ast.parse(source), is_package=False)
    assert any(forbidden(module, target) for target in found) == is_wrong


@every_module
def test_imports_point_towards_the_core(module: str) -> None:
    """The core imports no pass and no backend, a pass neither another pass nor a backend, a backend likewise."""
    is_package = MODULES[module].name == "__init__.py"
    assert [t for t in sorted(imported(module, TREES[module], is_package)) if forbidden(module, t)] == []


@every_module
def test_only_lookups_name_passes_and_backends(module: str) -> None:
    inside = module.startswith(("mbqc.passes", "mbqc.backends"))
    assert inside or module in LOOKUPS or named(TREES[module]) == set()


def test_lookups_name_packages_only() -> None:
    """No particular pass or backend is written down in the core."""
    assert {text for module in LOOKUPS for text in named(TREES[module])} == {"mbqc.passes", "mbqc.backends."}


def public(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Public functions and classes, and those within public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")


@every_module
def test_everything_public_has_a_docstring(module: str) -> None:
    tree = TREES[module]
    missing = [name for name, node in public(tree) if not ast.get_docstring(node)]  # type: ignore[arg-type]
    assert missing == []
    assert ast.get_docstring(tree), "the module itself"


HEAVY = ("torch", "numpy", "scipy", "networkx", "safetensors")


def loaded_by(statements: str) -> tuple[set[str], float]:
    """Heavy packages that a fresh interpreter holds after `statements`, and the processor seconds that these took."""
    code = f"""
import sys, time
start = time.process_time()
try:
{statements}
except SystemExit as error:
    assert not error.code, error.code
seconds = time.process_time() - start
print("loaded:", seconds, *[name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, *names = done.stdout.rpartition("loaded:")[2].split()
    return set(names), float(seconds)


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded_by("    import numpy")[0] == {"numpy"}


def test_importing_mbqc_loads_neither_torch_nor_numpy() -> None:
    assert loaded_by("    import mbqc")[0] == set()


@pytest.mark.parametrize("arguments", [["--help"], ["compile", "--help"], ["--version"]])
def test_the_command_line_answers_at_once_without_torch(arguments: list[str]) -> None:
    names, seconds = loaded_by(f"    from mbqc.cli import main; main({arguments})")
    assert names == set()
    assert seconds < 0.5
