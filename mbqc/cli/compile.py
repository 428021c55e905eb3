"""`mbqc compile`: a model file to an artifact."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from mbqc.cli.describe import LayerRow, Notes, Sizes, describe_layers, describe_notes, describe_sizes, show_layers
from mbqc.cli.options import BackendOption, DataOption, JsonOption, ModelArgument, set_data_folder
from mbqc.cli.output import Answer, print_facts, require_writable
from mbqc.cli.progress import show_progress
from mbqc.cli.training import Training, describe_training
from mbqc.errors import MbqcError, UsageError

if TYPE_CHECKING:
    from mbqc import runtime
    from mbqc.api import Compilation
    from mbqc.pipeline import Context
    from mbqc.pipeline.objective import Metric
    from mbqc.userfile import UserModel

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Compiled(Answer):
    """What `mbqc compile` made.

    Attributes:
        artifact: path of the file.
        traced_by: `torch.fx` or `torch.export`.
        kernels: how many operations each kind of kernel runs on the backend.
        seconds: by pass.
        training: None without the pass `train`.
    """

    artifact: str
    pipeline: str
    traced_by: str
    layers: tuple[LayerRow, ...]
    notes: Notes
    sizes: Sizes
    kernels: dict[str, int]
    seconds: tuple[tuple[str, float], ...]
    training: Training | None

    def show(self) -> None:
        """Prints pipeline, warnings, the layers, what stays in float, sizes and times."""
        print(f"{self.artifact}: {self.pipeline}\n", flush=True)
        self.notes.warn()
        show_layers(self.layers)
        self.notes.show()
        if self.training is not None:
            self.training.show()
        kernels = ", ".join(f"{name} {count}" for name, count in self.kernels.items())
        times = ", ".join(f"{name} {seconds:.1f}s" for name, seconds in self.seconds)
        print_facts([*self.sizes.facts(), ("kernels", kernels), ("traced by", self.traced_by), ("time", times)])


def compile_(
    model: ModelArgument,
    passes: Annotated[
        str, typer.Option(metavar="TEXT", help="The pipeline; `mbqc passes` lists what there is.")
    ] = "quant,bncorrect,hasb",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Default: the model's name with .mbqc.")
    ] = None,
    backend: BackendOption = "cpu",
    data: DataOption = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of everything random.")] = 0,
    dump: Annotated[Path | None, typer.Option(metavar="DIR", help="Writes the graph after each pass here.")] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where `train` keeps checkpoints, history and curves; default: --out with .training."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of --training.")] = False,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where `train` runs: cpu, cuda or cuda:1; all else runs on the CPU.")
    ] = "cpu",
    json: JsonOption = False,
) -> Compiled | None:
    """Compile a model file into one artifact.

    It stores each weight once and runs at any width from 8 bits to 1. The file defines model() and example_inputs(),
    and if it can calibration_data() (batches of typical inputs) and train_data() with loss() (batches of inputs and
    targets).
    """
    import torch

    from mbqc.api import compile_model, pipeline_of
    from mbqc.devices import find_device
    from mbqc.pipeline.context import silent
    from mbqc.runtime import find_backend, make
    from mbqc.userfile import load_user_model

    pipeline = pipeline_of(passes)
    find_backend(backend)
    found = find_device(device)
    set_data_folder(data)
    torch.manual_seed(seed)
    user = load_user_model(model)
    path = out if out is not None else Path(f"{_stem(user.place)}.mbqc")
    require_writable(path, [Path(str(user.module.__file__))])
    if dump is not None:
        _make_folder(dump, "--dump")
    context = replace(_context(user, seed), device=found)
    if any(item.trains for item in pipeline.passes):
        context = _training_context(context, user, training or path.with_suffix(".training"), path, resume)
    elif training is not None or resume or found.type != "cpu":
        raise UsageError("--training, --resume and --device are for pipelines with train", where=f"--passes {passes}")
    first = os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"
    if not first:
        context = replace(context, progress=silent)
    made = compile_model(user.model(), pipeline, context, dump if first else None)
    if not first:  # of the processes that torchrun started, one writes and speaks
        return None
    compiled = make(made.program, made.manifest, backend)
    compiled.save(path)
    return _answer(made, compiled, path, context)


def _answer(made: Compilation, compiled: runtime.Compiled, path: Path, context: Context) -> Compiled:
    kernels = compiled.executable.kernels(compiled.widths(), 1)
    return Compiled(
        artifact=str(path),
        pipeline=str(made.pipeline),
        traced_by=made.manifest.traced_by,
        layers=describe_layers(made.program, made.manifest, kernels),
        notes=describe_notes(made.manifest),
        sizes=describe_sizes(made.program, made.manifest, path.stat().st_size),
        kernels=dict(Counter(kernels)),
        seconds=tuple((name, round(seconds, 3)) for name, seconds in made.report.seconds),
        training=describe_training(result, compiled, context) if (result := made.report.training) else None,
    )


def _context(user: UserModel, seed: int) -> Context:
    from mbqc.pipeline import Context

    return Context(
        example_inputs=user.example_inputs(),
        calibration=user.data("calibration_data"),
        labelled=user.training_data(),
        loss=user.loss,
        seed=seed,
        progress=show_progress,
    )


def _training_context(context: Context, user: UserModel, folder: Path, out: Path, resume: bool) -> Context:
    """With what training needs beside; the pass makes the folder once it knows that it can train."""
    if folder.resolve() == out.resolve():
        raise UsageError("the artifact and the folder of training cannot have one name", where=f"--out {out}")
    return replace(
        context,
        evaluation=user.data("eval_data"),
        metric=cast("Metric", user.metric) if user.has_metric else None,
        folder=folder,
        resume=resume,
    )


def _stem(place: str) -> str:
    """`resnet` for `nets/resnet.py` and for `nets.resnet`."""
    return Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]


def _make_folder(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MbqcError(f"cannot make the folder: {error.strerror or error}", where=f"{option} {folder}") from error
