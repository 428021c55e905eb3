"""The `lower` pass: from a quantized graph to a Program."""

from mbqc.passes.lower.lower import Lower

__all__ = ["Lower"]
