"""How much there is to do in each operation."""

from __future__ import annotations

import pytest

from mbqc.program.operations import Aten, Conv, Linear
from mbqc.program.work import Work, work_of
from tests.samples import sample_program

PROGRAM = sample_program()
OPERATIONS = PROGRAM.listing.operations


def work(kind: type, index: int = 0, batch: int = 2) -> Work:
    return work_of(PROGRAM, [op for op in OPERATIONS if type(op) is kind][index], batch)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        # N x 6 x 6 x 3 to 8 channels, kernel 3 x 3
        (0, Work(2 * 36 * 8 * 27, 8 * 27, 2 * 36 * (3 + 8))),
        # one kernel a channel; the residual is the input, read once
        (1, Work(2 * 36 * 8 * 9, 8 * 9, 2 * 36 * (8 + 8))),
        # N x 3 x 3 x 8 to 4 channels, kernel 1 x 1
        (2, Work(2 * 9 * 4 * 8, 4 * 8, 2 * 9 * (8 + 4))),
    ],
)
def test_convolutions(index: int, expected: Work) -> None:
    assert work(Conv, index) == expected


def test_linear_to_float() -> None:
    assert work(Linear) == Work(2 * 12 * 5, 12 * 5, 2 * (12 + 4 * 5))


def test_float_operations_move_bytes_only() -> None:
    first = work(Aten)  # N x 12 floats plus a constant
    assert first == Work(0, 0, 2 * (4 * 12 + 4 * 12))


def test_everything_but_weights_grows_with_the_batch() -> None:
    for operation in OPERATIONS:
        one, three = (work_of(PROGRAM, operation, batch) for batch in (1, 3))
        assert three == Work(3 * one.multiply_adds, one.weights, 3 * one.value_bytes)
