"""mbqc, the multi-bit quantization compiler: one artifact that runs at any width from 8 bits down to 1.

    import mbqc

    compiled = mbqc.compile(model, example_inputs, passes="quant,bncorrect,hasb", calibration=loader)
    y = compiled(x, bits=4)
    compiled.save("m.mbqc")

Importing the package does no work; torch is imported when a function is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbqc.api import compile
    from mbqc.errors import MbqcError
    from mbqc.runtime import Compiled, load

__all__ = ["Compiled", "MbqcError", "compile", "load"]

_HOME = {"compile": "mbqc.api", "load": "mbqc.runtime", "Compiled": "mbqc.runtime", "MbqcError": "mbqc.errors"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mbqc' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
