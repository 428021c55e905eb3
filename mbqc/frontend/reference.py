"""What the user's own model computes: run before tracing, to compare the graph with."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from mbqc.errors import ModelError, TraceError
from mbqc.frontend.source import line_of_error

BATCHES = (1, 2, 8)
"""Batch sizes at which graph and model are compared: one of them at least is not that of the example inputs."""

TOLERANCE = 1e-3
"""Largest difference allowed, relative to the largest output: sums of floats may change their order."""


@dataclass(frozen=True)
class Sample:
    """Inputs of a model and its outputs for them, flat, and whether it returned them in a tuple or list."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    result_is_tuple: bool


def check_inputs(example_inputs: tuple[Tensor, ...]) -> None:
    """Raise ModelError unless `example_inputs` is a tuple of tensors with one batch size in dimension 0, none uint8."""
    if not isinstance(example_inputs, tuple) or not example_inputs:
        raise ModelError("example_inputs must be a non-empty tuple of tensors", hint="write (x,) for one input")
    if not all(isinstance(x, Tensor) and x.dim() > 0 for x in example_inputs):
        raise ModelError("every example input must be a tensor with the batch as dimension 0")
    sizes = sorted({x.shape[0] for x in example_inputs})
    if len(sizes) > 1 or sizes[0] == 0:
        raise ModelError(f"the example inputs must share one batch size, they have {sizes}")
    if any(x.dtype == torch.uint8 for x in example_inputs):
        raise ModelError("an input is uint8", hint="take images as float32, and divide by 255 outside the model")


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode, with parametrizations (weight norm and the like) computed once for all.

    Raises:
        ModelError: the model cannot be copied, or has lazy modules without tensors yet.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"'{name}' is not initialized, it is of a lazy module that has not run",
                hint="run the model once on its example inputs first",
            )
    try:
        copied = copy.deepcopy(model).eval()
    except Exception as exc:
        derived = "graph leaves" in str(exc)
        raise ModelError(
            "a tensor of the model is computed from others" if derived else f"the model cannot be copied: {exc}",
            hint="torch.nn.utils.prune.remove or remove_weight_norm makes it a parameter"
            if derived
            else "copy.deepcopy(model) must work",
        ) from exc
    for module in copied.modules():
        if parametrize.is_parametrized(module):
            _freeze_parametrizations(module)
    return copied


def _freeze_parametrizations(module: nn.Module) -> None:
    """Make parametrized tensors plain parameters.

    Not by torch's `remove_parametrizations`: that edits the module's class, which copy and original share.
    """
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    with torch.no_grad():
        tensors = {name: getattr(module, name).clone() for name in parametrizations}
    del module.parametrizations
    (module.__class__,) = type(module).__bases__
    for name, tensor in tensors.items():
        module.register_parameter(name, nn.Parameter(tensor))


def run_reference(
    model: nn.Module, example_inputs: tuple[Tensor, ...], calibration: tuple[Tensor, ...] | None = None
) -> list[Sample]:
    """What `model` returns for inputs near the examples, at each of BATCHES, and for a batch of calibration data.

    Raises:
        ModelError: the model fails on its example inputs or on the calibration data.
        TraceError: it fails at another batch size, or returns something else than tensors.
    """
    _check_outputs(_run(model, example_inputs, "its example inputs"))
    try:
        samples = [_sample_nearby(model, example_inputs, batch) for batch in BATCHES]
    except Exception as exc:
        raise TraceError(
            f"the model works for one batch size only: {type(exc).__name__}: {exc}",
            where=line_of_error(exc),
            hint="write shapes with x.shape[0] or -1 instead of a fixed batch size",
        ) from exc
    if calibration is not None:
        samples.append(_as_sample(calibration, _run(model, calibration, "the calibration data")))
    return samples


def _run(model: nn.Module, inputs: tuple[Tensor, ...], what: str) -> Any:
    """What `model` returns for inputs of the user."""
    try:
        return _call(model, inputs)
    except (Exception, SystemExit) as exc:
        message = f"the model fails on {what}: {type(exc).__name__}: {exc}"
        raise ModelError(message, where=line_of_error(exc)) from exc


def check_same(gm: fx.GraphModule, samples: list[Sample]) -> None:
    """Raise TraceError unless the graph computes what the model computed."""
    for sample in samples:
        found = _sample(gm, sample.inputs).outputs
        for index, (got, expected) in enumerate(zip(found, sample.outputs, strict=True)):
            if got.shape == expected.shape and _close(got, expected):
                continue
            raise TraceError(
                f"the traced graph and the model differ in output {index} for a batch of {len(got)}",
                hint="avoid random operations, in-place changes of slices and views, and decisions on the batch size",
            )


def _sample_nearby(model: nn.Module, example_inputs: tuple[Tensor, ...], batch: int) -> Sample:
    """What `model` returns for `batch` samples: the examples, moved unless that fails (floats may be indices)."""
    rows = tuple(x[torch.arange(batch, device=x.device) % len(x)] for x in example_inputs)
    try:
        return _sample(model, tuple(map(_moved, rows)))
    except Exception:  # of any type: the model's own code has run
        return _sample(model, rows)


def _sample(model: nn.Module, inputs: tuple[Tensor, ...]) -> Sample:
    return _as_sample(inputs, _call(model, inputs))


def _as_sample(inputs: tuple[Tensor, ...], outputs: Any) -> Sample:
    single = isinstance(outputs, Tensor)
    flat = (outputs,) if single else outputs
    return Sample(inputs, tuple(output.detach() for output in flat), not single)


def _call(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        # about speed, and normalize gives padding="same" another form anyway
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel", UserWarning)
        # copies, since the model may change its inputs in place
        return model(*(x.clone() for x in inputs))


def _check_outputs(outputs: Any) -> None:
    flat = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    if not flat or not all(isinstance(t, Tensor) for t in flat):
        raise TraceError(
            f"the model returns {type(outputs).__name__}, not a tensor or a flat tuple of tensors",
            hint="wrap it in a module whose forward returns tensors only",
        )


def _moved(x: Tensor) -> Tensor:
    """`x`, floats moved a little: examples are often all zeros, which hide differences."""
    if not x.is_floating_point():
        return x
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    return x + noise.to(x.device) * (0.1 * float(x.abs().max()) or 1.0)


def _close(got: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point() and not expected.is_complex():
        return torch.equal(got, expected)
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(got, expected, rtol=0, atol=TOLERANCE * max(largest, TOLERANCE), equal_nan=True)
