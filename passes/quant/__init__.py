"""The `quant` pass: quantize nodes for weights and activations, from one sweep over calibration data."""

from mbqc.passes.quant.quant import Quant

__all__ = ["Quant"]
