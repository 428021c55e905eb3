"""Every error that mbqc shows to a user.

An error says what is wrong, where (pass, node, file, line) and what to do about it. The command line prints it
without a traceback and ends with its `exit_code`: 2 for wrong usage, 1 for everything else.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

_INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")} | {str(Path(__file__).parent)}
_NOT_THE_USERS = ("<", *(f"{folder}{os.sep}" for folder in _INSTALLED))


class MbqcError(Exception):
    """Base of all errors addressed to the user.

    Args:
        message: what is wrong, one sentence.
        where: the place: a file and line, a pass, a node, a field.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  try: {self.hint}" if self.hint else text


class UsageError(MbqcError):
    """The call itself is wrong: an unknown command, option, pass, backend or layer."""

    exit_code = 2


class PipelineError(UsageError):
    """The list of passes cannot be parsed, or cannot run in this order."""


class WidthsError(UsageError):
    """A width is not a whole number from 1 to 8, or names a layer that does not exist."""


class ModelError(MbqcError):
    """The user's model file, or a function in it, is missing or fails."""


class TraceError(MbqcError):
    """The model cannot be turned into a graph."""


class DataError(MbqcError):
    """Calibration, training or evaluation data is empty, malformed or not finite."""


class PassError(MbqcError):
    """A pass cannot do its work on this graph."""


class VerifyError(MbqcError):
    """A graph or Program breaks a rule of its form."""


class InputError(MbqcError):
    """An input of a compiled model has the wrong count, shape or dtype."""


class ArtifactError(MbqcError):
    """An artifact cannot be read or written."""


class CheckpointError(MbqcError):
    """A checkpoint of training cannot be saved or read, or belongs to another run."""


class BackendError(MbqcError):
    """A backend is not available, or cannot run a Program."""


def user_line(error: BaseException) -> str | None:
    """`file:line` of the innermost frame of an exception that is neither of mbqc nor of an installed package."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_THE_USERS)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
