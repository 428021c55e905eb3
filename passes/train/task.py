"""What a training is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from mbqc.passes.train.parallel.ranks import Ranks
from mbqc.pipeline import Context

if TYPE_CHECKING:
    from mbqc.passes.train.train import Train


@dataclass(frozen=True)
class Task:
    """What is trained, how, on which data, and by whom.

    Attributes:
        graph: is trained in place.
        bits: the widths to train, highest first.
    """

    graph: fx.GraphModule
    options: Train
    bits: tuple[int, ...]
    context: Context
    ranks: Ranks
