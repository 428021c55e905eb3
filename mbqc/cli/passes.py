"""`mbqc passes`: what can stand in a pipeline."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mbqc.cli.options import JsonOption
from mbqc.cli.output import Answer, print_wrapped

if TYPE_CHECKING:
    from mbqc.pipeline import Pass


@dataclass(frozen=True)
class PassOption:
    """An option; `default` is None where a value is required."""

    name: str
    type: str
    default: str | None


@dataclass(frozen=True)
class PassRow:
    """A pass.

    Attributes:
        text: its documentation.
        requires, sets, clears: names of properties of the graph.
    """

    name: str
    text: str
    options: tuple[PassOption, ...]
    requires: tuple[str, ...]
    sets: tuple[str, ...]
    clears: tuple[str, ...]

    @property
    def summary(self) -> str:
        """The first paragraph, on one line."""
        return " ".join(self.text.split("\n\n")[0].split())


@dataclass(frozen=True)
class PassList(Answer):
    """The passes that were asked for."""

    passes: tuple[PassRow, ...]
    whole: bool

    def show(self) -> None:
        """Prints a paragraph a pass, or everything about one."""
        for row in self.passes:
            if not self.whole:
                print_wrapped(f"{row.name}: {row.summary}", indent=2)
            else:
                print(f"{row.name}\n{_indented(row.text)}\n")
                if row.options:
                    print("  Types and defaults:")
            for option in row.options:
                default = "required" if option.default is None else f"= {option.default}"
                default = "= none" if option.default == '"none"' else default  # the word needs no quotes here
                print(f"      {option.name}: {option.type}  {default}")
        if not self.whole:
            print("\nA pipeline: quant{bits=8:4:2},bncorrect,train{epochs=3}   (`:` is an empty list)")
            print("More on one pass: mbqc passes NAME")
            return
        for row in self.passes:
            for title, names in (("Requires", row.requires), ("Sets", row.sets), ("Clears", row.clears)):
                if names:
                    print(f"  {title}: {', '.join(names)}")


def passes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Everything about this pass.")] = None,
    json: JsonOption = False,
) -> PassList:
    """List the passes and their options."""
    from mbqc.lookup import find_pass, pass_table

    names = list(pass_table()) if name is None else [name]
    return PassList(tuple(_row(find_pass(item)) for item in names), whole=name is not None)


def _row(found: type[Pass]) -> PassRow:
    from mbqc.spec import options_of

    options = tuple(PassOption(o.name, o.type, o.default) for o in options_of(found))
    properties = (tuple(p.name for p in group) for group in (found.requires, found.sets, found.clears))
    return PassRow(found.name, inspect.getdoc(found) or "", options, *properties)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.splitlines())
