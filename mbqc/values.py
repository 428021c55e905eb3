"""Values of options as text. They describe themselves, so they can be read with or without a type:

    8  -3                 int
    0.5  1e-05  inf       float
    true  false  none
    fc  conv1.weight      str, bare where it is a plain word, "in quotes" (JSON) otherwise
    8:4:2   8:   :        tuple of three, one and no items

Lists are written with `:` because a shell expands `quant{bits=8,4,2}` to three words.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Sequence
from typing import Literal, Union, get_args, get_origin

from mbqc.errors import PipelineError

QUOTED = r'"(?:[^"\\]|\\.)*"|' + r"'(?:[^'\\]|\\.)*'"
"""Pattern of a quoted string."""

_KEYWORDS = ("true", "false", "none", "inf", "nan")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_UNQUOTED = re.compile(r"[^\s\"'{},:=]+")  # more than a word: where the type says str, `skip=0.conv` is clear
_INT = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf|nan)")
_TOKEN = re.compile(QUOTED + "|.", re.DOTALL)


def format_value(value: object) -> str:
    """The text of a value; `parse_value` and `parse_literal` read it back.

    Raises:
        PipelineError: the value is not None, bool, int, float, str or a flat tuple of these.
    """
    if isinstance(value, tuple):
        if any(isinstance(item, tuple) for item in value):
            raise PipelineError(f"{value!r} has no text form", hint="tuples cannot be nested")
        return ":".join(map(format_value, value)) + (":" if len(value) < 2 else "")
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)  # not repr: numpy.float64 is a float that prints its type
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) and value.lower() not in _KEYWORDS else quote(value)
    raise PipelineError(f"{value!r} has no text form", hint="use none, bool, int, float, str or a tuple of these")


def quote(text: str) -> str:
    """`text` as a JSON string on one line."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def parse_value(text: str, hint: object, *, where: str | None = None) -> object:
    """Reads `text` as a value of type `hint`.

    Args:
        text: `8`, `8:4:2`, `round`, ... Where the type is a tuple, a single item is a tuple of one.
        hint: int, float, bool, str, None, Literal[...], tuple[T, ...], tuple[A, B] or a union of these.
        where: place to name in an error.

    Raises:
        PipelineError: the text is no such value.
    """
    try:
        return _parse(text.strip(), hint)
    except ValueError:
        advice = 'put text with other signs than letters in quotes: "a b"' if "text" in format_type(hint) else None
        message = f"{text!r} is not a value of type {format_type(hint)}"
        raise PipelineError(message, where=where, hint=advice) from None


def parse_literal(text: str) -> object:
    """Reads a value by its own syntax: what `format_value` wrote comes back equal.

    Raises:
        PipelineError: the text is no value.
    """
    text = text.strip()
    try:
        if len(pieces := split(text, ":")) > 1:
            return tuple(_parse_untyped(item) for item in _items(pieces))
        return _parse_untyped(text)
    except ValueError:
        raise PipelineError(f"{text!r} is not a value", hint="put text in quotes") from None


def format_type(hint: object) -> str:
    """What may be written for a type: `int:int:...`, `round|floor|none`, `text`.

    Raises:
        PipelineError: the type has no text form.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return "|".join(map(format_type, args))
    if origin is Literal:
        return "|".join(map(str, args))
    if origin is tuple:
        return f"{format_type(args[0])}:..." if args[-1:] == (...,) else ":".join(map(format_type, args))
    try:
        return {int: "int", float: "float", bool: "true|false", str: "text", type(None): "none"}[hint]  # type: ignore[index]
    except KeyError:
        raise PipelineError(f"an option of type {hint} has no text form") from None


def split(text: str, separator: str) -> list[str]:
    """Splits at separators outside quotes and braces.

    Raises:
        PipelineError: braces or quotes do not match.
    """
    parts, depth = [""], 0
    for token in _TOKEN.findall(text):
        depth += {"{": 1, "}": -1}.get(token, 0)
        if depth not in (0, 1):
            raise PipelineError("unbalanced braces", where=text, hint="write name{key=value,key=value}")
        if token in ('"', "'"):
            raise PipelineError("a quote is not closed", where=text)
        if token == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    if depth:
        raise PipelineError("unbalanced braces: a '}' is missing", where=text)
    return parts


def _items(pieces: list[str]) -> list[str]:
    """The items of a tuple: a last colon closes a tuple of one, a lone colon is the empty tuple."""
    if len(pieces) > 1 and not pieces[-1].strip():
        pieces = pieces[:-1]
        return [] if pieces == [""] else pieces
    return pieces


def _parse(text: str, hint: object) -> object:
    """`parse_value` with ValueError for a text that does not fit."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first(text, sorted(args, key=_strictness))
    if origin is Literal:
        for choice in args:
            if _first(text, [type(choice), str]) == choice:
                return choice
        raise ValueError(text)
    if origin is tuple:
        items = _items(split(text, ":"))
        kinds = [args[0]] * len(items) if args[-1:] == (...,) else args
        return tuple(_parse(item.strip(), kind) for item, kind in zip(items, kinds, strict=True))
    return _parse_scalar(text, hint)


def _first(text: str, hints: Sequence[object]) -> object:
    for hint in hints:
        try:
            return _parse(text, hint)
        except ValueError:
            continue
    raise ValueError(text)


def _strictness(hint: object) -> int:
    """Order of trying the members of a union: str takes nearly any text, a tuple also a single item."""
    if get_origin(hint) is tuple:
        return 6
    return {type(None): 0, bool: 1, int: 2, float: 3, str: 5}.get(hint, 4)  # type: ignore[call-overload, no-any-return]


def _parse_scalar(text: str, hint: object) -> object:
    if hint is type(None) and text == "none":
        return None
    if hint is bool and text in ("true", "false"):
        return text == "true"
    if hint is int and _INT.fullmatch(text):
        return int(text)
    if hint is float and _FLOAT.fullmatch(text):
        return float(text)
    if hint is str:
        return text if _UNQUOTED.fullmatch(text) else _unquote(text)
    raise ValueError(text)


def _parse_untyped(text: str) -> object:
    text = text.strip()
    if _WORD.fullmatch(text) and text.lower() not in _KEYWORDS:
        return text
    try:
        return _first(text, [type(None), bool, int, float])
    except ValueError:
        return _unquote(text)


def _unquote(text: str) -> str:
    if not re.fullmatch(QUOTED, text, re.DOTALL):
        raise ValueError(text)
    if text[0] == "'":  # what one writes inside a pipeline in double quotes
        text = '"' + text[1:-1].replace("\\'", "'").replace('"', '\\"') + '"'
    return str(json.loads(text))
