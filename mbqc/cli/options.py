"""Arguments and options that several commands share, and how their texts are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mbqc.errors import UsageError, WidthsError

if TYPE_CHECKING:
    from mbqc.widths import Bits

ArtifactArgument = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A file that `mbqc compile` wrote.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="path.py, path.py:function or package.module:function")
]
BackendOption = Annotated[str, typer.Option(metavar="NAME", help="cpu or reference")]
DataOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Sets the environment variable MBQC_DATA for the model file.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, metavar="N", help="Threads of a call.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, errors included.")]
"""Read by `main`, which prints the answer; a command only declares it."""

WIDTHS_HELP = "Widths separated by ':', each 1 to 8 or @FILE (JSON, layer to width), or all."


def set_data_folder(folder: Path | None) -> None:
    """Makes `--data DIR` known to the user's model file as MBQC_DATA.

    Raises:
        UsageError: there is no such folder.
    """
    import os

    if folder is None:
        return
    if not folder.is_dir():
        raise UsageError("there is no such folder", where=f"--data {folder}")
    os.environ["MBQC_DATA"] = str(folder.resolve())


def parse_widths(text: str) -> dict[str, Bits]:
    """What `--bits` of `eval` and `bench` lists: `all`, or widths and `@file`s between colons, each by its text.

    Raises:
        WidthsError: an item is neither.
    """
    items = [str(bits) for bits in range(8, 0, -1)] if text == "all" else text.split(":")
    return {item.removeprefix("@"): parse_bits(item) for item in items}


def parse_bits(text: str) -> Bits:
    """One width, or a map from layer to width out of `@file.json`, in which "..." stands for all other layers.

    Raises:
        WidthsError: it is neither.
    """
    if text.startswith("@"):
        return _read_widths(Path(text[1:]))
    if text.isascii() and text.isdigit():
        return int(text)
    hint = "separate widths by ':', as in 8:4:2" if "," in text else "a whole number from 1 to 8, or @FILE"
    raise WidthsError(f"{text!r} is no width", where="--bits", hint=hint)


def _read_widths(path: Path) -> Bits:
    try:
        found = json.loads(path.read_text(), object_pairs_hook=_unique)
    except OSError as error:
        raise WidthsError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    except ValueError as error:
        raise WidthsError(f"is not JSON: {error}", where=str(path)) from error
    if not isinstance(found, dict):
        raise WidthsError('must hold an object such as {"conv1": 8, "...": 4}', where=str(path))
    return {... if name == "..." else name: width for name, width in found.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; json itself would let the last of two equal names win."""
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is given twice")
    return dict(pairs)
