"""Reads one line of IR text from left to right: names, values, types."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from mbqc.errors import MbqcError, PipelineError, VerifyError
from mbqc.ir.text import BARE_NAME
from mbqc.ir.types import TensorType
from mbqc.spec import SPEC, split_specs
from mbqc.values import parse_literal

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NODE = re.compile(r"%([A-Za-z_][A-Za-z0-9_]{0,255})")  # bounded: fx reads a number at its end
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_ATOM = re.compile(r"[^\s,()\[\]{}=\"'#]+")
_KEYWORD = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*=")
_DTYPE = re.compile(r"([a-z][a-z0-9_]*)\[")
_DIM = re.compile(r"([0-9]{0,18})N|[0-9]{1,18}")

_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {str(TensorType(d, ())).removesuffix("[]"): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
)


class Cursor:
    """A position in one line.

    Args:
        line: the text.
        number: its number, from 1.
    """

    def __init__(self, line: str, number: int) -> None:
        self._line = line
        self._at = 0
        self.where = f"line {number}"

    def error(self, expected: str) -> VerifyError:
        """The error that `expected` does not stand here."""
        rest = self._line[self._at :].strip()
        return VerifyError(f"expected {expected}, found {rest!r}" if rest else f"expected {expected}", where=self.where)

    @contextmanager
    def blame(self) -> Iterator[None]:
        """Turns errors of code that knows no lines into a VerifyError of this line."""
        try:
            yield
        except MbqcError as error:
            message = f"{error.where}: {error.message}" if error.where else error.message
            raise VerifyError(message, where=self.where, hint=error.hint) from error

    def take(self, sign: str | re.Pattern[str]) -> re.Match[str] | None:
        """Steps over spaces and `sign`, if it comes next."""
        pattern = sign if isinstance(sign, re.Pattern) else re.compile(re.escape(sign))
        start = len(self._line) - len(self._line[self._at :].lstrip())
        match = pattern.match(self._line, start)
        if match:
            self._at = match.end()
        return match

    def expect(self, sign: str | re.Pattern[str], what: str | None = None) -> re.Match[str]:
        """Steps over `sign`.

        Raises:
            VerifyError: something else stands here.
        """
        match = self.take(sign)
        if not match:
            raise self.error(what or repr(sign))
        return match

    def end(self) -> None:
        """Raises VerifyError unless only a comment is left."""
        rest = self._line[self._at :].strip()
        if rest and not rest.startswith("#"):
            raise self.error("the end of the line")

    def node(self) -> str:
        """A node name, `%x`, without the sign."""
        return str(self.expect(_NODE, "a node such as %x")[1])

    def word(self, what: str) -> str:
        """A dotted word."""
        return self.expect(_WORD, what)[0]

    def name(self, what: str) -> str:
        """The dotted name of a module or tensor, bare or in quotes."""
        match = self.take(_STRING)
        name = str(self._unquote(match[0])) if match else self.expect(BARE_NAME, what)[0]
        # fx writes these names into Python code, so none may end a string or be a keyword.
        if not all(part and part.isprintable() and not keyword.iskeyword(part) for part in name.split(".")):
            raise VerifyError(f"{name!r} is no {what}", where=self.where)
        if '"' in name or "\\" in name:
            raise VerifyError(f"{name!r} is no {what}", where=self.where)
        return name

    def spec(self, what: str) -> tuple[str, dict[str, str]]:
        """A spec, `name{key=value}`, with its options as raw texts."""
        match = self.expect(SPEC, what)
        with self.blame():
            return split_specs(match[0])[0]

    def arguments(self, nodes: Mapping[str, fx.Node]) -> tuple[list[Any], dict[str, Any]]:
        """`(value, ..., key=value)`."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}

        def argument() -> None:
            match = self.take(_KEYWORD)
            if match and (match[1] in kwargs or keyword.iskeyword(match[1])):
                raise VerifyError(f"argument {match[1]!r} cannot be given here", where=self.where)
            if match:
                kwargs[match[1]] = self.value(nodes)
            elif kwargs:
                raise self.error("key=value after the first key=value")
            else:
                args.append(self.value(nodes))

        self.expect("(")
        self._until(")", argument)
        return args, kwargs

    def value(self, nodes: Mapping[str, fx.Node]) -> Any:
        """One argument: a node, a literal, a torch constant, or a list, tuple or dict of these."""
        if match := self.take(_NODE):
            if match[1] not in nodes:
                raise VerifyError(f"%{match[1]} is not defined above", where=self.where)
            return nodes[match[1]]
        if match := self.take(_STRING):
            return self._unquote(match[0])
        if self.take("["):
            return self._until("]", lambda: self.value(nodes))[0]
        if self.take("("):
            items, comma = self._until(")", lambda: self.value(nodes))
            if len(items) == 1 and not comma:
                raise self.error("a comma: a tuple of one is written (a,)")
            return tuple(items)
        if self.take("{"):
            return dict(self._until("}", lambda: self._entry(nodes))[0])
        return self._constant()

    def type(self) -> TensorType | tuple[Any, ...]:
        """`f32[Nx3x32x32]`, or a tuple of types."""
        if self.take("("):
            return tuple(self._until(")", self.type)[0])
        match = self.expect(_DTYPE, "a type such as f32[Nx3]")
        if match[1] not in _DTYPES:
            raise VerifyError(f"there is no dtype {match[1]!r}", where=self.where)
        dims: list[int] = []
        while not self.take("]"):
            if dims:
                self.expect("x", "'x' or ']'")
            dim = self.expect(_DIM, "a dimension such as 3, N or 4N")
            dims.append(int(dim[0]) if dim[1] is None else -int(dim[1] or 1))
        return TensorType(_DTYPES[match[1]], tuple(dims))

    def _until(self, close: str, item: Callable[[], Any]) -> tuple[list[Any], bool]:
        """Items between commas up to `close`, and whether a comma stood before it."""
        items: list[Any] = []
        comma = True
        while not self.take(close):
            if not comma:
                raise self.error(f"',' or {close!r}")
            items.append(item())
            comma = bool(self.take(","))
        return items, comma

    def _entry(self, nodes: Mapping[str, fx.Node]) -> tuple[Any, Any]:
        key = self._unquote(self.expect(_STRING, 'a key such as "logits"')[0])
        self.expect(":")
        return key, self.value(nodes)

    def _constant(self) -> Any:
        start = self._at
        atom = self.expect(_ATOM, "a value")[0]
        if atom == "device" and self.take("("):
            text = self._unquote(self.expect(_STRING, "a device in quotes")[0])
            self.expect(")")
            try:
                return torch.device(text)
            except RuntimeError:
                raise VerifyError(f"there is no device {text!r}", where=self.where) from None
        if atom.startswith("torch."):
            value = getattr(torch, atom.removeprefix("torch."), None)
            if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
                return value
        try:
            value = parse_literal(atom)
        except PipelineError:
            value = atom
        if isinstance(value, str | tuple):
            self._at = start
            raise self.error("a value")
        return value

    def _unquote(self, text: str) -> Any:
        with self.blame():
            return parse_literal(text)
