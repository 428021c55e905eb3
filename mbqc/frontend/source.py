"""Which line of the user's code something comes from: code outside torch, mbqc and Python's library."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

import mbqc

_INTERNAL = tuple(f"{Path(str(package.__file__)).parent}{os.sep}" for package in (torch, mbqc))
_STANDARD_LIBRARY = f"{Path(os.__file__).parent}{os.sep}"
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def line_in_stack(stack: str | None) -> str | None:
    """`"file:line"` of the innermost user frame in the text of a stack, None without one."""
    frames = [(file, line) for file, line in _FRAME.findall(stack or "") if _is_user_file(file)]
    return ":".join(frames[-1]) if frames else None


def line_of_error(error: BaseException) -> str | None:
    """`"file:line"` of the innermost user frame that an error, or one behind it, went through, None without one."""
    for link in _chain(error):
        frames = [f for f in traceback.extract_tb(link.__traceback__) if _is_user_file(f.filename)]
        if frames:
            return f"{frames[-1].filename}:{frames[-1].lineno}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _is_user_file(file: str) -> bool:
    # "<eval_with_key>.0" is code that fx generated, "torch/fx/..." a node that export added by itself
    if file.startswith(("<", "torch/", *_INTERNAL)):
        return False
    return "site-packages" in file or not file.startswith(_STANDARD_LIBRARY)
