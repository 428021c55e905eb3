"""Package map and native libraries. The metadata stands in pyproject.toml.

`passes/` and `backends/` install as `mbqc.passes` and `mbqc.backends`. The CPU kernels are plain C++ behind a C
interface; they are optional: without a compiler the install succeeds, the `cpu` backend says what is missing, and
training runs in torch alone.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
FOLDERS = {"mbqc": "mbqc", "mbqc.passes": "passes", "mbqc.backends": "backends"}


def packages() -> list[str]:
    found = []
    for name, folder in FOLDERS.items():
        found += [name, *(f"{name}.{sub}" for sub in find_packages(str(ROOT / folder)))]
    return found


def library(package: str, folder: str) -> Extension:
    """A native library from `folder`/csrc."""
    return Extension(
        f"{package}._native",
        sources=sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(f"{folder}/csrc/*.cpp")),
        depends=sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(f"{folder}/csrc/*.h")),
        # contraction off: a multiplication and an addition round twice (the numerics contract)
        extra_compile_args=["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall"],
        optional=True,
    )


setup(
    packages=packages(),
    package_dir=FOLDERS,
    package_data={"mbqc": ["py.typed", "fused/csrc/*"], "mbqc.backends": ["cpu/csrc/*"]},
    ext_modules=[library("mbqc.backends.cpu", "backends/cpu"), library("mbqc.fused", "mbqc/fused")],
)
