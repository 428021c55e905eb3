"""`mbqc run`: an artifact on arrays from files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mbqc.cli.options import ArtifactArgument, BackendOption, JsonOption, ThreadsOption, parse_bits
from mbqc.cli.output import Answer, print_wrapped, require_writable, warn, write_output
from mbqc.errors import InputError, UsageError, WidthsError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mbqc.runtime import Compiled
    from mbqc.widths import Bits


@dataclass(frozen=True)
class OutputFile:
    """An output that was written."""

    path: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Ran(Answer):
    """A run: the width of every layer, and what was written.

    Attributes:
        mean_bits: mean width over all weights of layers that are not pinned.
    """

    widths: dict[str, int]
    mean_bits: float
    outputs: tuple[OutputFile, ...]

    def show(self) -> None:
        """Prints the layers at each width, and the outputs."""
        for bits in sorted(set(self.widths.values()), reverse=True):
            layers = [layer for layer, width in self.widths.items() if width == bits]
            others = f"all {len(layers)} others" if len(layers) < len(self.widths) else f"all {len(layers)} layers"
            text = others if 2 * len(layers) > len(self.widths) else ", ".join(layers)
            print_wrapped(f"{bits} bit{'s' if bits > 1 else ''}: {text}", indent=2)
        print(f"mean: {self.mean_bits:.2f} bits a weight, pinned layers not counted")
        for output in self.outputs:
            print(f"{output.path}: {output.dtype} {'x'.join(map(str, output.shape))}")


def run(
    artifact: ArtifactArgument,
    input: Annotated[
        list[Path], typer.Option(metavar="FILE.npy", help="An array; repeat it for a model of several inputs.")
    ],
    output: Annotated[list[Path], typer.Option(metavar="FILE.npy", help="One for each output of the model.")],
    bits: Annotated[
        str | None,
        typer.Option(metavar="WIDTHS", help="1 to 8, or @FILE: JSON, layer to width, ... for the rest. [8]"),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="mean=BITS", help="Choose the width of each layer by its sensitivity.")
    ] = None,
    threads: ThreadsOption = 1,
    backend: BackendOption = "cpu",
    json: JsonOption = False,
) -> Ran:
    """Run an artifact on .npy files.

    At one width, at widths by layer, or at those of least expected loss within a budget of bits.
    """
    from mbqc.budget import mean_bits
    from mbqc.runtime import load

    if bits is not None and budget is not None:
        raise UsageError("--bits and --budget exclude each other")
    asked = parse_bits(bits) if bits is not None else 8
    mean = _parse_budget(budget) if budget is not None else None
    compiled = load(artifact, backend, threads=threads)
    chosen = asked if mean is None else _within(compiled, mean)
    widths = dict(compiled.widths(chosen).layers)
    names = compiled.program.listing.outputs
    if len(output) != len(names):
        raise UsageError(f"the model has {len(names)} output(s) ({', '.join(names)}), {len(output)} --output given")
    for index, path in enumerate(output):
        require_writable(path, [artifact, *input])
        if path.resolve() in [other.resolve() for other in output[:index]]:
            raise UsageError("two outputs cannot go into one file", where=str(path))
    results = compiled(*(_read_array(path) for path in input), bits=chosen)
    arrays = [tensor.numpy() for tensor in (results if isinstance(results, tuple) else (results,))]
    for path, array in zip(output, arrays, strict=True):
        write_output(path, _npy(array))
    files = (OutputFile(str(path), str(a.dtype), a.shape) for path, a in zip(output, arrays, strict=True))
    return Ran(widths, mean_bits(compiled.program, widths), tuple(files))


def _parse_budget(text: str) -> float:
    kind, _, value = text.partition("=")
    try:
        if kind == "mean":
            return float(value)
    except ValueError:
        pass
    raise WidthsError(f"{text!r} is no budget", where="--budget", hint="mean=BITS, as in mean=3.5")


def _within(compiled: Compiled, mean: float) -> Bits:
    from mbqc.budget import widths_of_mean

    if any(info.sensitivity is None for info in compiled.program.listing.layers.values()):
        warn("no sensitivity was measured (the pass hasb does it): all layers count alike")
    return widths_of_mean(compiled.program, mean)


def _read_array(path: Path) -> npt.NDArray[np.generic]:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=str(path)) from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"not a readable .npy file: {error}", where=str(path)) from error
    if not isinstance(array, np.ndarray):
        raise InputError("holds several arrays", where=str(path), hint="give each input as a .npy file of its own")
    return array


def _npy(array: npt.NDArray[np.generic]) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
