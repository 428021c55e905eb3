"""The user's side of a command: a Python file with the model, its data, and how results are judged.

    def model() -> torch.nn.Module                          # required
    def example_inputs() -> Tensor | tuple[Tensor, ...]     # required; dimension 0 is the batch
    def calibration_data()                                  # batches of inputs
    def train_data()                                        # batches (inputs, target)
    def eval_data()                                         # batches (inputs, target)
    def loss(output, target) -> Tensor                      # a scalar
    def metric(output, target) -> float                     # higher is better

Each is needed only by the commands that use it. Whatever goes wrong inside is told with the user's own file and line.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mbqc.errors import MbqcError, ModelError, user_line
from mbqc.lookup import import_module


@dataclass(frozen=True)
class UserModel:
    """A loaded user file.

    Attributes:
        place: as the user wrote it, without `:name`.
        function: name of the function that makes the model.
    """

    place: str
    module: ModuleType
    function: str = "model"

    def model(self) -> nn.Module:
        """The float model. Random weights come out the same each time, so that all commands see one model.

        Raises:
            ModelError: the function is missing, raises, or returns something else.
        """
        if isinstance(self._find(self.function), nn.Module):
            raise ModelError(
                f"{self.function} is a module, expected a function that returns it",
                where=self.place,
                hint=f"write `def {self.function}(): return ...`",
            )
        with _fixed_seed():
            made = self.call(self.function)
        if not isinstance(made, nn.Module):
            raise self.wrong(self.function, made, "a torch.nn.Module")
        return made

    def example_inputs(self) -> tuple[Tensor, ...]:
        """One valid input of the model, as a tuple.

        Raises:
            ModelError: the function is missing, raises, or returns something else.
        """
        made = self.call("example_inputs")
        inputs = tuple(made) if isinstance(made, tuple | list) else (made,)
        if not inputs or not all(isinstance(item, Tensor) for item in inputs):
            raise self.wrong("example_inputs", made, "a tensor or a tuple of tensors")
        return inputs

    def data(self, name: str) -> UserData | None:
        """`calibration_data`, `train_data` or `eval_data`, None where the file has no such function.

        Raises:
            ModelError: the function raises, or returns nothing that can be iterated.
        """
        return self.require_data(name) if self._find(name) is not None else None

    def require_data(self, name: str) -> UserData:
        """As `data`, for what cannot be left out.

        Raises:
            ModelError: also where the file has no such function.
        """
        return UserData(self, name)

    def training_data(self) -> Iterable[object] | Dataset[Any] | None:
        """`train_data()`: batches, a DataLoader, a Dataset or a tuple of tensors; None without such a function.

        Raises:
            ModelError: the function raises, or returns something else.
        """
        if self._find("train_data") is None:
            return None
        made = self.call("train_data")
        if isinstance(made, Dataset | DataLoader):
            return made
        if isinstance(made, tuple) and made and all(isinstance(part, Tensor) for part in made):
            return made
        return UserData(self, "train_data", made)

    @property
    def has_metric(self) -> bool:
        """Whether the file has a metric of its own."""
        return self._find("metric") is not None

    @property
    def loss(self) -> Callable[[Any, Tensor], Tensor] | None:
        """`loss(output, target)`, None where the file has none."""
        return self._find("loss")

    def metric(self, output: object, target: Tensor) -> float | None:
        """The user's metric of outputs and targets, None where the file has none.

        Raises:
            ModelError: it raises, or gives no number.
        """
        if self._find("metric") is None:
            return None
        value = self.call("metric", output, target)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise self.wrong("metric", value, "a number") from None

    def call(self, name: str, *arguments: object) -> Any:
        """The result of one of the file's functions.

        Raises:
            ModelError: it is missing, or raises; names the user's line.
        """
        function = self._find(name)
        if function is None:
            close = difflib.get_close_matches(name, vars(self.module), n=1)
            hint = f"did you mean {close[0]}?" if close else f"write `def {name}(): ...`"
            raise ModelError(f"there is no function {name}()", where=self.place, hint=hint)
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:
            raise self.failure(name, error) from error

    def failure(self, name: str, error: BaseException) -> MbqcError:
        """What to tell the user about an exception from one of the file's functions."""
        if isinstance(error, MbqcError):
            return error
        return ModelError(f"{name}() raised {type(error).__name__}: {error}", where=user_line(error) or self.place)

    def wrong(self, name: str, value: object, expected: str) -> ModelError:
        """What to tell the user about a result of the wrong type."""
        return ModelError(
            f"{name}() returned an object of type {type(value).__name__}, expected {expected}", where=self.place
        )

    def _find(self, name: str) -> Callable[..., Any] | None:
        found = getattr(self.module, name, None)
        if found is not None and not callable(found):
            raise ModelError(f"{name} is of type {type(found).__name__}, expected a function", where=self.place)
        return found


class UserData:
    """What a data function gives, iterable as often as needed: a generator is made anew for each further sweep.

    Raises:
        ModelError: the function raises, or returns nothing that can be iterated.
    """

    def __init__(self, owner: UserModel, name: str, made: object = None) -> None:
        self._owner, self._name = owner, name
        self._data = self._checked(made) if made is not None else self._make()
        self._used = False

    def __len__(self) -> int:
        """Batches of a sweep, where the data knows.

        Raises:
            TypeError: it does not.
        """
        return len(self._data)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[object]:
        # What can be iterated again is kept: it may hold the state of its shuffling.
        if self._used and isinstance(self._data, Iterator):
            self._data = self._make()
        self._used = True
        try:
            yield from self._data
        except (Exception, SystemExit) as error:
            raise self._owner.failure(self._name, error) from error

    def _make(self) -> Iterable[object]:
        return self._checked(self._owner.call(self._name))

    def _checked(self, made: object) -> Iterable[object]:
        if not isinstance(made, Iterable) or isinstance(made, Tensor | tuple | str | dict):
            raise self._owner.wrong(self._name, made, "batches: a list, a generator or a DataLoader")
        return made


def load_user_model(text: str) -> UserModel:
    """The user's file from `path.py`, `path.py:name` or `package.module:name`; `name` is the model function.

    Its folder (for a module: the current one) stays importable, as it would be for a script.

    Raises:
        ModelError: it is missing, or raises while it is imported.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        place, name = text, "model"
    folder = str(Path(place).resolve().parent) if place.endswith(".py") else str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with _fixed_seed():
        module = import_module(place)
    return UserModel(place, module, name)


@contextmanager
def _fixed_seed() -> Iterator[None]:
    """Random numbers that are the same each time, without effect on those drawn later."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
