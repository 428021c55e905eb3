"""The text form of options, `name{key=value,key=value}`: of passes, and of modules and annotations in IR."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import TYPE_CHECKING, TypeVar, get_type_hints

from mbqc.errors import PipelineError
from mbqc.values import QUOTED, format_type, format_value, parse_value, split

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_NAME = re.compile(r"[\w./~+-]+(?::[A-Za-z_]\w*)?")

SPEC = re.compile(rf"[A-Za-z_][A-Za-z0-9_]*(?:\{{(?:{QUOTED}|[^{{}}\"'])*\}})?")
"""One spec with a plain name inside a longer line."""


@dataclass(frozen=True)
class Option:
    """One option of a dataclass, for lists and messages.

    Attributes:
        name: the field.
        type: the values it takes, as `format_type` writes them.
        default: the default as text, None where a value is required.
    """

    name: str
    type: str
    default: str | None

    def __str__(self) -> str:
        return f"{self.name}: {self.type} " + ("(required)" if self.default is None else f"= {self.default}")


def options_of(cls: type[DataclassInstance]) -> tuple[Option, ...]:
    """The options of a dataclass: its constructor's fields."""
    hints = get_type_hints(cls)
    return tuple(Option(f.name, format_type(hints[f.name]), _default_text(f)) for f in _options(cls))


def format_spec(name: str, options: Mapping[str, str]) -> str:
    """`name{key=text,...}`, or the bare name without options; `split_specs` takes it apart."""
    body = ",".join(f"{key}={text}" for key, text in options.items())
    return f"{name}{{{body}}}" if body else name


def format_dataclass(obj: DataclassInstance, name: str) -> str:
    """The spec of a dataclass instance: only the fields that differ from their defaults."""
    # Compared as text: 0.0 and -0.0, or 1 and True, are equal but not the same option.
    texts = [(f, format_value(getattr(obj, f.name))) for f in _options(type(obj))]
    return format_spec(name, {f.name: text for f, text in texts if text != _default_text(f)})


def parse_dataclass(cls: type[T], options: Mapping[str, str], name: str) -> T:
    """An instance of `cls` from raw option texts, as `split_specs` gives them.

    Args:
        cls: a dataclass.
        options: option name to text.
        name: what the user calls it, for errors.

    Raises:
        PipelineError: unknown or missing option, or a value of the wrong type.
    """
    known = {option.name: option for option in options_of(cls)}
    for key in options:
        if key not in known:
            raise PipelineError(f"there is no option {key!r}", where=name, hint=_suggest(key, known))
    for key, option in known.items():
        if option.default is None and key not in options:
            raise PipelineError(f"option {option} is missing", where=name, hint=f"{name}{{{key}=...}}")
    hints = get_type_hints(cls)
    values = {key: parse_value(text, hints[key], where=f"{name}, option {key}") for key, text in options.items()}
    try:
        return cls(**values)
    except ValueError as error:  # a check in __post_init__
        raise PipelineError(str(error), where=name) from error


def split_specs(text: str) -> list[tuple[str, dict[str, str]]]:
    """Splits `quant{bits=8:4:2},bncorrect,pkg.mod:Pass{x=1}` into names and raw option texts.

    Raises:
        PipelineError: unbalanced braces or quotes, an empty name, a duplicate option, a list
            written with commas, or a text whose braces the shell has expanded.
    """
    return [_split_spec(part.strip()) for part in split(text, ",")]


def _split_spec(text: str) -> tuple[str, dict[str, str]]:
    name, brace, body = text.partition("{")
    name = name.strip()
    if "=" in name:
        advice = "put the pipeline in quotes: the shell expands quant{bits=8,skip=fc} to quantbits=8 quantskip=fc"
        raise PipelineError(f"{name!r} is an option without braces around it", hint=advice)
    if not _NAME.fullmatch(name):
        message = f"{name!r} is not a name" if name else "a name is missing"
        raise PipelineError(message, where=text or None, hint="write name, package.module:Name or path/file.py:Name")
    if brace and not body.endswith("}"):
        raise PipelineError("there is text after the closing brace", where=text, hint="separate passes by commas")
    body = body[:-1].strip()
    return name, _split_options(name, split(body, ",")) if body else {}


def _split_options(name: str, parts: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and options and key:
            last, first = list(options.items())[-1]
            raise PipelineError(
                f"{key!r} is not key=value",
                where=name,
                hint=f"write lists with ':', as in {last}={first}:{key}",
            )
        if not key.isidentifier() or not value:
            raise PipelineError(f"{part.strip()!r} is not key=value", where=name, hint='empty text is written ""')
        if key in options:
            raise PipelineError(f"option {key!r} is given twice", where=name)
        options[key] = value
    return options


def _options(cls: type[DataclassInstance]) -> list[Field[object]]:
    return [f for f in fields(cls) if f.init]


def _default_text(field: Field[object]) -> str | None:
    if field.default_factory is not MISSING:
        return format_value(field.default_factory())
    return None if field.default is MISSING else format_value(field.default)


def _suggest(key: str, known: Mapping[str, Option]) -> str:
    close = difflib.get_close_matches(key, known, n=3)
    listing = "the options are " + "; ".join(map(str, known.values())) if known else "it has no options"
    return f"did you mean {' or '.join(close)}? {listing}" if close else listing
