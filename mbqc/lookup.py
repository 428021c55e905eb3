"""Passes by name: those of mbqc, and the user's own as `package.module:Class` or `path/file.py:Class`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from mbqc.errors import MbqcError, ModelError, PipelineError, user_line
from mbqc.pipeline import Pass


def find_pass(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        PipelineError: there is none of that name, or what the name leads to is no pass.
        ModelError: a file of the user's cannot be imported.
    """
    place = name if ":" in name else pass_table().get(name)
    if place is None:
        close = difflib.get_close_matches(name, pass_table(), n=2)
        known = f"the passes are {', '.join(pass_table())}; one of your own is written path/file.py:Name"
        raise PipelineError(f"there is no pass {name!r}", hint=f"did you mean {close[0]}?" if close else known)
    module, _, attribute = place.rpartition(":")
    found = getattr(import_module(module), attribute, None)
    if not isinstance(found, type) or not issubclass(found, Pass):
        raise PipelineError(f"{place} is no pass", hint="a pass is a frozen dataclass derived from mbqc.pipeline.Pass")
    return found


def pass_table() -> dict[str, str]:
    """Name to place of the passes that come with mbqc."""
    table = importlib.import_module("mbqc.passes").PASSES
    assert isinstance(table, dict)
    return table


def import_module(place: str) -> ModuleType:
    """A module by file path (`path/file.py`) or by dotted name.

    Raises:
        ModelError: it is missing, or raises while it is imported; names the user's file and line.
    """
    if place.endswith(".py"):
        return _import_file(Path(place))
    try:
        return importlib.import_module(place)
    except MbqcError:
        raise
    except ModuleNotFoundError as error:
        hint = "write path/file.py, or package.module as for import"
        raise ModelError(f"cannot import {place!r}: {error}", hint=hint) from error
    except (Exception, SystemExit) as error:
        raise _import_error(place, error) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError("there is no such file", where=str(path))
    name = f"_mbqc_user_{path.stem}_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up
    sys.path.insert(0, str(path.resolve().parent))  # a model file may import its neighbours, as a script does
    try:
        spec.loader.exec_module(module)
    except MbqcError:
        raise
    except (Exception, SystemExit) as error:
        raise _import_error(str(path), error) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _import_error(place: str, error: BaseException) -> ModelError:
    if isinstance(error, SyntaxError):
        where = f"{error.filename}:{error.lineno}" if error.filename and error.lineno else place
        return ModelError(f"syntax error: {error.msg}", where=where)
    where = user_line(error) or place
    return ModelError(f"raised {type(error).__name__} while it was imported: {error}", where=where)
