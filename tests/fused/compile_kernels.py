"""Compiles Triton's kernels for an NVIDIA GPU, which need not be there, as `gpu` launches them.

    python -m tests.fused.compile_kernels

Prints their assembly as JSON, by name.
"""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mbqc.fused import gpu

POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16"}


def type_of(argument: Tensor | float) -> str:
    """In Triton's words; a one is a constant to it."""
    if isinstance(argument, Tensor):
        return POINTERS[argument.dtype]
    if isinstance(argument, float):
        return "fp32"
    return "constexpr" if argument == 1 else "i32"


def main() -> None:
    assembly = {}

    def compile_only(kernel: Any, *arguments: Tensor | float, grid: object, warmup: bool, **options: object) -> None:
        constants = {name: options.pop(name) for name in kernel.arg_names if name in options}
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        signature = {name: type_of(value) for name, value in named.items()} | dict.fromkeys(constants, "constexpr")
        constants |= {name: value for name, value in named.items() if signature[name] == "constexpr"}
        source = ASTSource(kernel, signature, constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
        assembly[f"{kernel.__name__} {len(assembly)}"] = compiled.asm["ptx"]

    kernels, scalar, scale = gpu.in_triton(), torch.ones(()), torch.ones(3)
    with mock.patch.object(triton.JITFunction, "run", compile_only):
        for x in (torch.ones(5000), torch.ones(5000, dtype=torch.bfloat16)):
            kernels.quantize_activations(x, scalar, scalar, 4, rectify=True)
            kernels.activation_gradients(x, x, scalar, scalar, 4, rectify=True)
        one, few, many = torch.ones(3, 1), torch.ones(3, 7, 3, 3), torch.ones(3, 300)
        for weight in (one, few):
            kernels.quantize_weights(weight, scale, 4, "round")
        for weight in (one, many):
            kernels.weight_gradients(weight, scale, weight, weight)
        for weight, granularity in ((one, 1), (few, 1), (many, 2), (many, 4), (many, 0)):
            kernels.correct_moments(weight, weight, scale, -0.5, both=True, granularity=granularity)
    print(json.dumps(assembly))


if __name__ == "__main__":
    main()
