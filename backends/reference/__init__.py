"""Execution by definition: integer arithmetic in int64, plain torch, one operation at a time."""

from mbqc.backends.reference.executor import load

__all__ = ["load"]
