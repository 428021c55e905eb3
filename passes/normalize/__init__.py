"""The `normalize` pass: brings a traced graph to the canonical float graph."""

from mbqc.passes.normalize.normalize import Normalize

__all__ = ["Normalize"]
