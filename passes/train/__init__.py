"""The `train` pass: one run trains every width of a quantized graph."""

from mbqc.passes.train.train import Train

__all__ = ["Train"]
