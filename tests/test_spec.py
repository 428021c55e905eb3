"""The text form of options: round trips, and errors that help."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import string
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbqc.errors import PipelineError
from mbqc.spec import format_dataclass, format_spec, options_of, parse_dataclass, split_specs
from mbqc.values import format_type, format_value, parse_literal, parse_value


@dataclass(frozen=True)
class Quant:
    bits: tuple[int, ...] = (8, 4, 2)
    ladder: Literal["round", "floor", "none"] = "round"
    lr: float = 1e-3
    skip: tuple[str, ...] = ()
    seed: int | None = None
    note: str = ""
    fast: bool = False


@dataclass(frozen=True)
class Needs:
    layer: str


@dataclass(frozen=True)
class Positive:
    steps: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be positive")


def read(cls: Any, text: str) -> Any:
    [(name, options)] = split_specs(text)
    return parse_dataclass(cls, options, name)


SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text() | st.sampled_from(["none", "true", "inf", "-3", "1e5", "a,b", 'a"b', "a'b", "{}", "a:b", "\\", "="]),
    Literal["round", "floor", "none", "a b", "8"]: st.sampled_from(["round", "floor", "none", "a b", "8"]),
    Literal[1, 2, "auto"]: st.sampled_from([1, 2, "auto"]),
}
FIELDS = {
    **SCALARS,
    **{tuple[hint, ...]: st.lists(values, max_size=3).map(tuple) for hint, values in SCALARS.items()},
    **{hint | None: values | st.none() for hint, values in SCALARS.items()},
    tuple[int, str]: st.tuples(st.integers(), SCALARS[str]),
    int | tuple[int, ...]: st.integers() | st.lists(st.integers()).map(tuple),
    str | int | float | None: SCALARS[str] | st.integers() | SCALARS[float] | st.none(),
    tuple[str, ...] | str: SCALARS[str] | st.lists(SCALARS[str]).map(tuple),
}


@st.composite
def instances(draw: st.DrawFn) -> object:
    """An instance of a random dataclass, some of its fields with defaults."""
    hints = draw(st.lists(st.sampled_from(list(FIELDS)), max_size=5))
    defaults = [draw(st.none() | FIELDS[hint].map(lambda value: (value,))) for hint in hints]
    names = [f"field_{letter}" for letter in string.ascii_lowercase]
    cls = dataclasses.make_dataclass(
        "Random",
        [
            (name, hint) if default is None else (name, hint, dataclasses.field(default=default[0]))
            for name, hint, default in zip(names, hints, defaults, strict=False)
        ],
        kw_only=True,
        frozen=True,
    )
    return cls(**{name: draw(FIELDS[hint]) for name, hint in zip(names, hints, strict=False)})


@given(instances())
@settings(max_examples=300)
def test_dataclass_round_trip(instance: Any) -> None:
    text = format_dataclass(instance, "pkg.mod:Random")
    assert "\n" not in text
    again = read(type(instance), text)
    assert repr(again) == repr(instance)  # repr tells 1 from True and 0.0 from -0.0
    assert format_dataclass(again, "pkg.mod:Random") == text


@given(st.one_of([FIELDS[hint] for hint in FIELDS]))
def test_values_describe_themselves(value: object) -> None:
    assert repr(parse_literal(format_value(value))) == repr(value)


@given(st.text(alphabet="ab{}=,:\"'\\ 81.-\n", max_size=20))
@settings(max_examples=500)
def test_any_text_parses_or_is_a_pipeline_error(text: str) -> None:
    with contextlib.suppress(PipelineError):
        for name, options in split_specs(text):
            parse_dataclass(Quant, options, name)


def test_a_list_of_specs() -> None:
    instances = [Quant(bits=(8,)), Quant(note='},{x="', skip=("fc", "a b")), Quant()]
    text = ",".join(format_dataclass(instance, "quant") for instance in instances)
    assert [parse_dataclass(Quant, options, name) for name, options in split_specs(text)] == instances


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-05, "1e-05"),
        (1e20, "1e+20"),
        (-math.inf, "-inf"),
        (1.0, "1.0"),
        (True, "true"),
        (None, "none"),
        ("none", '"none"'),
        ("conv1.weight", "conv1.weight"),
        ("3x", '"3x"'),
        ('say "a,b"', r'"say \"a,b\""'),
        ((), ":"),
        ((8,), "8:"),
        ((8, 4, 2), "8:4:2"),
        (("", "a"), '"":a'),
    ],
)
def test_text_of_values(value: object, text: str) -> None:
    assert format_value(value) == text
    assert repr(parse_literal(text)) == repr(value)


def test_nan_survives() -> None:
    assert math.isnan(parse_value(format_value(math.nan), float))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [((1, 2), 3), [1], object(), 1j])
def test_values_without_text(value: object) -> None:
    with pytest.raises(PipelineError, match="no text form"):
        format_value(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quant", Quant()),
        (" quant { bits = 8 : 4 , fast = true } ", Quant(bits=(8, 4), fast=True)),
        ("quant{bits=8}", Quant(bits=(8,))),
        ("quant{skip=0.conv:fc}", Quant(skip=("0.conv", "fc"))),
        ("quant{skip='fc 1':\"a'b\",note='say \"hi\"'}", Quant(skip=("fc 1", "a'b"), note='say "hi"')),
        ("quant{ladder=none,seed=none,note=none}", Quant(ladder="none", note="none")),
        ("quant{lr=1}", Quant(lr=1.0)),
        ("quant{}", Quant()),
    ],
)
def test_what_people_write(text: str, expected: Quant) -> None:
    assert read(Quant, text) == expected


def test_only_changed_options_are_printed() -> None:
    assert format_dataclass(Quant(), "quant") == "quant"
    assert format_dataclass(Quant(bits=(8, 1), skip=("fc",)), "quant") == "quant{bits=8:1,skip=fc:}"
    assert format_spec("ReLU", {}) == "ReLU"


@pytest.mark.parametrize("name", ["quant", "package.module:Name", "path/to-my/file.py:Name", "./file.py:Name"])
def test_names(name: str) -> None:
    assert split_specs(f"{name}{{a=1}},x") == [(name, {"a": "1"}), ("x", {})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quant{bit=8}", "did you mean bits.*bits: int:... = 8:4:2; ladder: round.floor.none = round"),
        ("quant{zzz=8}", "the options are bits"),
        ("quant{bits=8,4,2}", "write lists with ':', as in bits=8:4"),
        ("quantbits=8,quantskip=fc", "put the pipeline in quotes"),
        ("quantbits=8 quantskip=fc", "put the pipeline in quotes"),
        ("quant{bits=x}", "quant, option bits: 'x' is not a value of type int:..."),
        ("quant{bits=8.0}", "int:..."),
        ("quant{fast=yes}", "true.false"),
        ("quant{ladder=up}", "round.floor.none"),
        ("quant{seed=1e3}", "int.none"),
        ("quant{note=a b}", "in quotes"),
        ("quant{bits=8:4", "a '}' is missing"),
        ("quant{bits=8}}", "unbalanced"),
        ("quant{a={b=1}}", "unbalanced"),
        ("quant{bits=8}x", "after the closing brace"),
        ("quant{bits=8}{lr=1}", "unbalanced"),
        ('quant{note="a}', "quote is not closed"),
        ("quant,,train", "a name is missing"),
        ("", "a name is missing"),
        ("{bits=8}", "a name is missing"),
        ("quant train", "is not a name"),
        ("quant{bits=8,bits=4}", "given twice"),
        ("quant{bits}", "not key=value"),
        ("quant{bits=}", "not key=value"),
        ("quant{bits=8,}", "not key=value"),
    ],
)
def test_errors_help(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        read(Quant, text)
    assert caught.value.exit_code == 2


def test_required_options_and_checks() -> None:
    assert read(Needs, "pin{layer=fc}") == Needs("fc")
    with pytest.raises(PipelineError, match=r"layer: text \(required\) is missing"):
        read(Needs, "pin")
    with pytest.raises(PipelineError, match="p: steps must be positive"):
        read(Positive, "p{steps=0}")
    with pytest.raises(PipelineError, match="no text form"):
        format_type(list[int])


def test_options_for_listings() -> None:
    assert [str(option) for option in options_of(Quant)][3:5] == [
        "skip: text:... = :",
        "seed: int|none = none",
    ]
