"""Native kernels: a whole Program in one call, at any widths, by the best instruction set of the machine."""

from mbqc.backends.cpu.executor import load

__all__ = ["load"]
