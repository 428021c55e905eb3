"""Reads the text that `mbqc.ir.text` prints. One statement per line; `#` starts a comment."""

from __future__ import annotations

import keyword
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from mbqc.errors import VerifyError
from mbqc.ir.annotations import ANNOTATIONS, annotate
from mbqc.ir.construct import MODULES, TensorStore, build_module, install
from mbqc.ir.cursor import IDENTIFIER, Cursor
from mbqc.ir.text import OPERATORS, WIDTHS
from mbqc.spec import parse_dataclass

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def parse_graph(
    text: str,
    tensors: Mapping[str, Tensor],
    *,
    modules: Collection[type[nn.Module]] = MODULES,
    annotations: Collection[type[DataclassInstance]] = ANNOTATIONS,
) -> fx.GraphModule:
    """The graph that `print_graph` printed, in eval mode.

    Args:
        text: the printed graph.
        tensors: weights by name, as `graph_tensors(gm)` gives them. They are used, not copied, and stay
            tied where two names refer to one memory. Further names are ignored.
        modules: classes that the text may name.
        annotations: classes of annotations that the text may name, in lower case.

    Raises:
        VerifyError: the text is no graph; says in which line and what was expected there.
    """
    lines = _Lines(text)
    reader = _GraphReader({cls.__name__.lower(): cls for cls in annotations})
    properties = _header(lines.next("'graph {'"))
    for cursor in _block(lines):
        reader.statement(cursor)
    reader.check_returns(lines.where)
    definitions: dict[str, tuple[Cursor, nn.Module]] = {}
    classes = {cls.__name__: cls for cls in modules}
    for cursor in _module_lines(lines):
        _define(cursor, definitions, classes)
    root = _root(reader, definitions, TensorStore(tensors))
    gm = fx.GraphModule(root, reader.graph)
    gm.meta["properties"] = properties
    return gm


class _GraphReader:
    """Builds an fx.Graph statement by statement, and remembers what the graph refers to."""

    def __init__(self, annotations: Mapping[str, type[DataclassInstance]]) -> None:
        self.graph = fx.Graph()
        self.called: dict[str, Cursor] = {}
        self.read: dict[str, tuple[Cursor, bool]] = {}
        self._annotations = annotations
        self._nodes: dict[str, fx.Node] = {}
        self._inputs: dict[str, bool] = {}
        self._returned = False

    def statement(self, cursor: Cursor) -> None:
        """One line: `%x = ...` or `return ...`, then its type and annotations."""
        if self._returned:
            raise cursor.error("'}' after the return")
        try:
            node = self._return(cursor) if cursor.take("return ") else self._assignment(cursor)
            self._facts(cursor, node)
        except RecursionError:
            raise VerifyError("values are nested too deeply", where=cursor.where) from None
        cursor.end()

    def check_returns(self, where: str) -> None:
        """Raises VerifyError for a graph without a result, which ends at `where`."""
        if not self._returned:
            raise VerifyError("expected a return as the last statement of the graph", where=where)

    def _return(self, cursor: Cursor) -> fx.Node:
        self._returned = True
        node: fx.Node = self.graph.output(cursor.value(self._nodes))
        return node

    def _assignment(self, cursor: Cursor) -> fx.Node:
        name = cursor.node()
        cursor.expect("=")
        match cursor.word("input, parameter, tensor, call or a function"):
            case "input":
                node = self._input(cursor, name)
            case "parameter" | "tensor" as kind:
                target = cursor.name("tensor name")
                self.read[target] = (cursor, kind == "parameter")
                node = self._create("get_attr", target, name)
            case "call":
                target = cursor.name("module name")
                self.called.setdefault(target, cursor)
                node = self._create("call_module", target, name, *cursor.arguments(self._nodes))
            case word:
                function = _function(cursor, word)
                node = self._create("call_function", function, name, *cursor.arguments(self._nodes))
        if node.name != name or name == "self":  # taken, or a word of Python, so fx chose another one
            raise VerifyError(f"%{name} cannot be the name of a node here", where=cursor.where)
        self._nodes[name] = node
        return node

    def _create(self, op: str, target: Any, name: str, args: Any = (), kwargs: Any = None) -> fx.Node:
        node: fx.Node = self.graph.create_node(op, target, tuple(args), kwargs, name)
        return node

    def _input(self, cursor: Cursor, name: str) -> fx.Node:
        target = cursor.expect(IDENTIFIER, "the name of an input")[0]
        has_default = bool(cursor.take("default "))
        if keyword.iskeyword(target) or target == "self" or target in self._inputs:
            raise VerifyError(f"{target!r} cannot be the name of an input here", where=cursor.where)
        if not has_default and any(self._inputs.values()):
            raise cursor.error("a default, since an input above has one")
        self._inputs[target] = has_default
        args = [cursor.value({})] if has_default else []
        return self._create("placeholder", target, name, args)

    def _facts(self, cursor: Cursor, node: fx.Node) -> None:
        if cursor.take(":") and not (node.op == "placeholder" and cursor.take(WIDTHS)):
            node.meta["type"] = cursor.type()
        while cursor.take("@"):
            name, options = cursor.spec("an annotation such as pinned{bits=8}")
            if name not in self._annotations:
                known = ", ".join(self._annotations)
                raise VerifyError(f"there is no annotation {name!r}", where=cursor.where, hint=f"known are {known}")
            with cursor.blame():
                annotate(node, parse_dataclass(self._annotations[name], options, name))


def _root(reader: _GraphReader, definitions: Mapping[str, tuple[Cursor, nn.Module]], store: TensorStore) -> nn.Module:
    """The attributes that the graph refers to."""
    for target, cursor in reader.called.items():
        if target not in definitions:
            raise VerifyError(f"there is no module {target!r}", where=cursor.where, hint="define it in modules { }")
    root = nn.Module()
    for name in sorted(definitions, key=lambda name: name.count(".")):  # outer modules before those within
        cursor, module = definitions[name]
        with cursor.blame():
            if name not in reader.called:
                raise VerifyError(f"no statement calls the module {name!r}")
            store.fill(name, module)
            _install(root, name, module)
    for name, (cursor, as_parameter) in reader.read.items():
        owner, _, leaf = name.rpartition(".")
        held = definitions[owner][1] if owner in definitions else root
        with cursor.blame():
            if not isinstance(getattr(held, leaf, None), Tensor):  # else it came with its module
                _install(root, name, store.get(name, as_parameter))
    return root.eval()


def _install(root: nn.Module, name: str, value: nn.Module | Tensor) -> None:
    if hasattr(fx.GraphModule, name.partition(".")[0]):
        raise VerifyError(f"{name!r} cannot be a name: it is a part of every graph")
    install(root, name, value)


def _define(
    cursor: Cursor, definitions: dict[str, tuple[Cursor, nn.Module]], classes: Mapping[str, type[nn.Module]]
) -> None:
    """One line of the modules: `conv1 = Conv2d{in_channels=3,...}`."""
    name = cursor.name("module name")
    cursor.expect("=")
    class_name, options = cursor.spec("a module such as ReLU or Linear{in_features=3,out_features=2}")
    cursor.end()
    with cursor.blame():
        if name in definitions:
            raise VerifyError(f"module {name!r} is defined twice")
        if class_name not in classes:
            raise VerifyError(f"a graph cannot hold modules of class {class_name!r}")
        definitions[name] = (cursor, build_module(classes[class_name], options))


def _function(cursor: Cursor, word: str) -> Callable[..., Any]:
    if word in OPERATORS:
        return OPERATORS[word]
    match word.split("."):
        case ["aten", name, overload]:
            found = getattr(getattr(torch.ops.aten, name, None), overload, None)
            if isinstance(found, OpOverload):
                return found
    hint = f"write aten.name.overload, {', '.join(OPERATORS)}, or call and a module"
    raise VerifyError(f"there is no function {word!r}", where=cursor.where, hint=hint)


def _header(cursor: Cursor) -> frozenset[str]:
    """`graph [canonical, quantized] {`."""
    cursor.expect("graph")
    properties = []
    if cursor.take("["):
        properties.append(cursor.word("a property"))
        while cursor.take(","):
            properties.append(cursor.word("a property"))
        cursor.expect("]")
    cursor.expect("{")
    cursor.end()
    return frozenset(properties)


def _module_lines(lines: _Lines) -> Iterator[Cursor]:
    """The lines of the modules block, none if there is no such block."""
    if lines.at_end():
        return
    cursor = lines.next("'modules {'")
    cursor.expect("modules", "'modules {' or the end of the text")
    cursor.expect("{")
    cursor.end()
    yield from _block(lines)
    if not lines.at_end():
        raise lines.next("").error("the end of the text")


def _block(lines: _Lines) -> Iterator[Cursor]:
    """The lines up to a closing brace."""
    while not (cursor := lines.next("'}'")).take("}"):
        yield cursor
    cursor.end()


class _Lines:
    """The lines of a text that hold something.

    Attributes:
        where: the line given out last.
    """

    def __init__(self, text: str) -> None:
        # Not splitlines(): a string may hold other line separators.
        numbered = list(enumerate(text.split("\n"), 1))
        self.where = self._end = f"line {len(numbered)}"
        self._cursors = deque(Cursor(line, n) for n, line in numbered if line.strip() and line.strip()[0] != "#")

    def at_end(self) -> bool:
        """Whether no line is left."""
        return not self._cursors

    def next(self, expected: str) -> Cursor:
        """The next line; raises VerifyError if there is none."""
        if not self._cursors:
            raise VerifyError(f"expected {expected}, found the end of the text", where=self._end)
        cursor = self._cursors.popleft()
        self.where = cursor.where
        return cursor
