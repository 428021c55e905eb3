"""The compiler as one call: trace, run the passes, lower, load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.data import Dataset

from mbqc.artifact import Manifest, StoredNote
from mbqc.devices import CPU, find_device
from mbqc.errors import PipelineError, UsageError
from mbqc.frontend.dropout import dropouts
from mbqc.frontend.trace import trace
from mbqc.ir.compare import layer_sqnr
from mbqc.lookup import find_pass
from mbqc.numerics import ALL_BITS
from mbqc.pipeline import Context, Pass, Pipeline, Report
from mbqc.pipeline.instruments import Compare, Dump, Instrument, Timing, Verify
from mbqc.pipeline.pipeline import properties_of
from mbqc.program.operations import Program
from mbqc.properties import ALL
from mbqc.runtime import Compiled, find_backend, make

DEFAULT_PASSES = "quant,bncorrect,hasb"

SQNR_SAMPLES = 8
"""Calibration samples on which the table's SQNR of each layer and width is measured."""


@dataclass(frozen=True)
class Compilation:
    """Everything that a compilation made.

    Attributes:
        pipeline: the passes that ran, `normalize` and `lower` included.
        quantized: the quantized graph that was lowered.
        program, manifest: what an artifact stores.
        report: notes and times of the passes.
    """

    pipeline: Pipeline
    quantized: fx.GraphModule
    program: Program
    manifest: Manifest
    report: Report


def compile(
    model: nn.Module,
    example_inputs: Sequence[Tensor] | Tensor,
    passes: str | Sequence[Pass] = DEFAULT_PASSES,
    calibration: Iterable[object] | None = None,
    backend: str = "cpu",
    *,
    labelled: Iterable[object] | Dataset[Any] | None = None,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    evaluation: Iterable[object] | None = None,
    metric: Callable[[Any, Tensor], float] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device = CPU,
) -> Compiled:
    """Compiles a model into one that runs at any width from 8 bits to 1.

    Args:
        model: a torch module; it is not changed.
        example_inputs: one valid input, or several as a tuple; dimension 0 is the batch.
        passes: a pipeline as text, or pass instances; `normalize` and `lower` are added where they are missing.
        calibration: batches of representative inputs; without them the example inputs calibrate.
        backend: `cpu` or `reference`.
        labelled: data with targets for passes that need a loss: batches (inputs, target), a DataLoader, a map-style
            Dataset, or all samples as a tuple of tensors.
        loss: `loss(output, target)`, a scalar; by default cross entropy. `train` asks it now and then about one answer
            for all samples of a batch, so it must not keep what it sees.
        evaluation: batches (inputs, target) on which `train` judges every width.
        metric: `metric(output, target)`, higher is better; by default top-1 accuracy in percent.
        seed: of everything random.
        folder: where `train` keeps checkpoints, history and curves; None to keep nothing.
        resume: whether `train` goes on from the newest checkpoint in `folder`, bit for bit unless a Dataset draws from
            a generator of its own.
        device: where `train` computes: `cpu`, `cuda` (under torchrun to each process its own), or `cuda:1` for one GPU
            of several. All else computes on the CPU.

    Raises:
        MbqcError: the model cannot be traced, the pipeline cannot run, the data is wrong; the message says what to do.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(inputs, tuple | list) or not all(isinstance(part, Tensor) for part in inputs):
        raise UsageError("example_inputs must be a tensor, or a tuple of tensors")
    place = Path(folder) if folder is not None else None
    context = Context(
        tuple(inputs),
        calibration,
        labelled,
        loss,
        evaluation,
        metric,
        seed,
        folder=place,
        resume=resume,
        device=find_device(device),
    )
    find_backend(backend)
    pipeline = pipeline_of(passes)
    if context.device != CPU and not any(item.trains for item in pipeline.passes):
        raise UsageError("device is for pipelines with train", where=f"pipeline {pipeline}")
    made = compile_model(model, pipeline, context)
    return make(made.program, made.manifest, backend)


def pipeline_of(passes: str | Sequence[Pass]) -> Pipeline:
    """The pipeline that a user means: `normalize` first and `lower` last are added where they are missing.

    Raises:
        PipelineError: the text is wrong, or the passes cannot run in this order.
    """
    pipeline = Pipeline.parse(passes, find_pass) if isinstance(passes, str) else Pipeline(tuple(passes))
    wrong = next((item for item in pipeline.passes if not isinstance(item, Pass)), None)
    if wrong is not None:
        raise PipelineError(f"{wrong!r} is no pass", hint="give passes as one text, or as instances")
    names = [item.name for item in pipeline.passes]
    first = () if "normalize" in names else (find_pass("normalize")(),)
    last = () if "lower" in names else (find_pass("lower")(),)
    complete = pipeline.between(first, last)
    if "lower" in [item.name for item in complete.passes[:-1]]:
        raise PipelineError("lower must be the last pass, and appear once", where=f"pipeline {complete}")
    complete.check()
    return complete


def compile_model(model: nn.Module, pipeline: Pipeline, context: Context, dump: Path | None = None) -> Compilation:
    """Traces `model` and runs `pipeline`, verifying after each pass.

    Args:
        dump: folder for the text of the graph after each pass.

    Raises:
        MbqcError: as `compile`.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"the model is a {type(model).__name__}, expected a torch.nn.Module")
    if torch.is_inference_mode_enabled():
        raise UsageError("passes need gradients", where="torch.inference_mode", hint="compile outside of it")
    graph = trace(model, context.example_inputs, context.calibration_batches()[0])
    if any(item.trains for item in pipeline.passes):
        _note_dropout(model, graph, context.report)
    *before, lower = pipeline.passes
    report = context.report
    instruments: list[Instrument] = [TrialLowering(lower, context), Timing(report), Verify(ALL), Compare(context)]
    if dump is not None:
        instruments.append(Dump(dump))
    quantized = Pipeline(tuple(before)).run(graph, context, instruments)
    assert isinstance(quantized, fx.GraphModule), "only lower makes a Program"
    program = Pipeline((lower,)).run(quantized, context, instruments)
    assert isinstance(program, Program), "lower makes a Program"
    manifest = _manifest(model, graph, quantized, pipeline, context)
    return Compilation(pipeline, quantized, program, manifest, context.report)


class TrialLowering(Instrument):
    """Lowers a copy of the graph before training, so that what has no form in a Program is told before long work."""

    def __init__(self, lower: Pass, context: Context) -> None:
        self._lower, self._context = lower, context

    def before(self, index: int, item: Pass, graph: fx.GraphModule) -> None:
        """Raises what `lower` would after the training."""
        if item.trains and {p.name for p in self._lower.requires} <= properties_of(graph):
            Pipeline((self._lower,)).run(graph, replace(self._context, report=Report()))


def _note_dropout(model: nn.Module, graph: fx.GraphModule, report: Report) -> None:
    found = [f"{name} (p={share:g})" for name, share in dropouts(model, graph).items()]
    if found:
        listed = f"{', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
        message = f"dropout in {len(found)} place(s) is removed and does not act in this training: {listed}"
        report.add("train", "warning", "", message)


def _manifest(
    model: nn.Module, graph: fx.GraphModule, quantized: fx.GraphModule, pipeline: Pipeline, context: Context
) -> Manifest:
    sample = [part[:SQNR_SAMPLES] for part in context.calibration_batches()[0]]
    measured = layer_sqnr(quantized, sample, reversed(ALL_BITS))
    return Manifest(
        mbqc=version("mbqc"),
        model=type(model).__name__,
        pipeline=str(pipeline),
        traced_by=str(graph.meta["traced_by"]),
        parameters=sum(p.numel() for p in model.parameters()),
        notes=tuple(StoredNote(n.source, n.kind, n.subject, n.message) for n in context.report.notes),
        sqnr={layer: {str(b): round(db, 2) for b, db in row.items()} for layer, row in measured.items()},
    )
