"""The benchmark of the cpu backend: small cases of it run, and its table says what was reached."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "cpu_speed"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize(
    ("found", "low", "owed", "aimed", "met"),
    [
        (2.0, 2.1, 1.0, 2.0, "aimed"),
        (1.5, 1.9, 1.0, 2.0, "owed"),
        (0.9, 0.8, 1.0, 2.0, "no"),
        (2.0, 1.0, 3.0, 1.0, "aimed"),
        (2.9, 3.5, 3.0, 1.0, "owed"),
        (3.1, 3.2, 3.0, 1.0, "no"),
    ],
)
def test_a_row_reaches_what_its_better_figure_does(
    found: float, low: float, owed: float, aimed: float, met: str
) -> None:
    from rows import Row

    assert Row("item", found, low, "x", owed, aimed).met == met


def test_small_cases_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import bits
    import convolution
    import linear

    monkeypatch.setattr(convolution, "SHAPES", (convolution.Shape(32, 8, 6, 3, 1, 90, 97),))
    monkeypatch.setattr(bits, "SHAPES", (bits.Shape(32, 4, 3.8, 4.6),))
    monkeypatch.setattr(linear, "SHAPES", ((512, 1), (512, 16)))
    monkeypatch.setattr(linear, "OWN", {(4, 512): (1.9, 2.0)})
    rows = [*convolution.rows(2), *bits.rows(2), *linear.rows(2)]
    assert [row.item for row in rows] == [
        "3x3 32->8 6",
        "3x3 32->8 6 / oneDNN",
        *(
            f"3x3 32 channels 4: weights {w}, inputs {x} bit / 8 x 8"
            for w, x in ((1, 1), (1, 2), (2, 2), (1, 8), (2, 8))
        ),
        "linear 512 x 512, batch 1: 4 bit / 8",
        *(f"linear 512 x 512, batch 16: {bits} bit" for bits in (8, 4, 2, 1)),
    ]
    assert all(row.found > 0 and row.low > 0 for row in rows)


def test_the_network_for_timing_compiles_as_any_other() -> None:
    import resnet18
    import torch

    assert resnet18.model()(*resnet18.example_inputs()).shape == torch.Size([1, 1000])
