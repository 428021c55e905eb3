"""What a user may ask for as widths, and what it means."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from mbqc.errors import WidthsError
from mbqc.widths import FLOAT, Widths, resolve

LAYERS = {"stem": 8, "body.0": None, "body.1": None, "fc": 8}


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (8, (8, 8, 8, 8)),
        (1, (8, 1, 1, 8)),
        ({...: 3}, (8, 3, 3, 8)),
        ({"body.1": 2, ...: 4}, (8, 4, 2, 8)),
        ({"stem": 4, ...: 4}, (4, 4, 4, 8)),
        ({"body.0": 2, "body.1": 3}, (8, 2, 3, 8)),
        ({"fc": 1, "body.1": 2, "body.0": 3, "stem": 5}, (5, 3, 2, 1)),
        (np.int64(3), (8, 3, 3, 8)),
        ({"body.1": np.int8(2), ...: 4}, (8, 4, 2, 8)),
    ],
)
def test_resolve(bits: Any, expected: tuple[int, ...]) -> None:
    """A pinned layer keeps its width unless it is named; the order is that of the graph."""
    found = resolve(bits, LAYERS).layers
    assert found == tuple(zip(LAYERS, expected, strict=True))
    assert all(type(width) is int for _, width in found)


@pytest.mark.parametrize("wrong", [0, 9, -1, 1.0, 4.5, True, "4", None])
@pytest.mark.parametrize("place", ["all", "layer", "rest"])
def test_wrong_width(wrong: Any, place: str) -> None:
    bits = {"all": wrong, "layer": {"body.0": wrong, ...: 4}, "rest": {"body.0": 4, ...: wrong}}[place]
    absent = wrong is None and place != "layer"
    with pytest.raises(WidthsError, match="is given no width" if absent else "is not a whole number from 1 to 8"):
        resolve(bits, LAYERS)


def test_unknown_layer_suggests() -> None:
    with pytest.raises(WidthsError, match=r"there is no quantized layer 'body\.2'") as caught:
        resolve({"body.2": 4, ...: 8}, LAYERS)
    assert "did you mean body.1 or body.0?" in str(caught.value)
    with pytest.raises(WidthsError, match="mbqc inspect"):
        resolve({"zzzzz": 4, ...: 8}, LAYERS)
    number: Any = {3: 4, ...: 8}
    with pytest.raises(WidthsError, match="layers are named by text"):
        resolve(number, {"3": None})


def test_missing_layer() -> None:
    with pytest.raises(WidthsError, match=r"layer 'body\.1' is given no width") as caught:
        resolve({"body.0": 4}, LAYERS)
    assert caught.value.exit_code == 2
    assert "'...'" in str(caught.value)


def test_values_that_key_a_cache() -> None:
    assert resolve(4, LAYERS) == resolve({...: 4}, LAYERS)
    assert hash(resolve(4, LAYERS)) == hash(resolve({...: 4}, LAYERS))
    assert resolve(4, LAYERS) != resolve(3, LAYERS)
    assert Widths() != FLOAT


def test_governing_width() -> None:
    """A value has the width of the widest layer that reads it."""
    widths = resolve({"body.0": 2, "body.1": 3, ...: 8}, LAYERS)
    assert widths.governing(["body.0", "body.1"]) == 3
    assert widths.governing([]) == 8


def test_text() -> None:
    assert str(FLOAT) == "float"
    assert str(Widths((("a", 4), ("b", 4)))) == "4"
    assert str(Widths((("a", 4), ("b", 8)))) == "8:4 mixed"


def test_widths_pass_to_another_process_without_what_they_keep() -> None:
    """Texts have another hash there, and a view of a map cannot be pickled."""
    widths = Widths((("a", 8), ("b", 2)))
    assert hash(widths) == hash(Widths(widths.layers))
    assert widths.by_layer["b"] == 2
    copied = pickle.loads(pickle.dumps(widths))
    assert copied == widths
    assert not {"_hash", "by_layer"} & vars(copied).keys()
