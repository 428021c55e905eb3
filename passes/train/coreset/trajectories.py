"""What is kept of every training sample at one width, and the formulas that turn it into scores.

A *snapshot* holds what the model said about the samples since the last one: a warm-up epoch, or a forward pass over
the data. Each sample has a trajectory of its own: a snapshot that did not see it leaves it as it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

Score = Literal["tdds", "el2n", "entropy", "forgetting"]
"""What ranks the samples; higher is harder, or says more."""

WINDOW = 10
"""TDDS: snapshots in a window (J of the paper), fewer while there are fewer."""

NEWEST = 0.9
"""TDDS: weight of the newest window (beta of the paper); the one before counts a tenth of it."""

ROWS = 1 << 16
"""Samples whose probabilities are compared at once, which bounds the memory."""


class Trajectories(ABC):
    """What is known about all samples at one width.

    `sum` and `count` collect the open snapshot: zero where nothing was observed, so ranks that see different samples
    are added up. All other tensors change only when a snapshot ends.
    """

    least: ClassVar[int] = 1
    """Snapshots of a sample before it has a score."""

    def __init__(self, samples: int, device: torch.device, measured: tuple[int, ...] = ()) -> None:
        # logits are kept as the model gives them, which takes half the memory; the arithmetic is float64 throughout
        dtype = torch.float32 if measured else torch.float64
        self.tensors = {
            "sum": torch.zeros(samples, *measured, dtype=dtype, device=device),
            "count": torch.zeros(samples, dtype=torch.int32, device=device),
            "snapshots": torch.zeros(samples, dtype=torch.int32, device=device),
        }

    def observe(self, indices: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Adds observations to the open snapshot."""
        own = self.tensors["sum"]
        own.index_add_(0, indices, self.measure(logits, targets).to(own.dtype))
        self.tensors["count"].index_add_(0, indices, torch.ones_like(indices, dtype=torch.int32))

    def end_snapshot(self, reduce: Callable[[Tensor], object] | None) -> None:
        """Takes in the open snapshot, summed over ranks by `reduce`, and opens the next."""
        total, count = self.tensors["sum"], self.tensors["count"]
        if reduce is not None:
            reduce(total)
            reduce(count)
        times = count.clamp(min=1).to(total.dtype).reshape(-1, *[1] * (total.dim() - 1))
        self.tensors["snapshots"] += count > 0
        self.advance(count > 0, total / times)
        total.zero_()
        count.zero_()

    @abstractmethod
    def measure(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What is noted of each observed sample."""

    @abstractmethod
    def advance(self, seen: Tensor, measured: Tensor) -> None:
        """Takes in a snapshot: `measured`, the mean over the observations, counts where `seen`."""

    @abstractmethod
    def scores(self) -> Tensor:
        """One number a sample, float64; anything where there were too few snapshots."""


class _Average(Trajectories):
    """The mean of a measure over the snapshots."""

    def __init__(self, samples: int, device: torch.device) -> None:
        super().__init__(samples, device)
        self.tensors["total"] = torch.zeros(samples, dtype=torch.float64, device=device)

    def advance(self, seen: Tensor, measured: Tensor) -> None:
        self.tensors["total"] += measured  # zero where not seen

    def scores(self) -> Tensor:
        return self.tensors["total"] / self.tensors["snapshots"]


class _El2n(_Average):
    """`|| p - onehot(y) ||_2` (Paul et al., arXiv 2107.07075, definition 2.2)."""

    def measure(self, logits: Tensor, targets: Tensor) -> Tensor:
        error = logits.double().softmax(1)
        error.scatter_add_(1, targets[:, None], error.new_full((len(error), 1), -1.0))
        return error.square().sum(1).sqrt()


class _Entropy(_Average):
    """`-sum_c p_c log p_c`, in nats."""

    def measure(self, logits: Tensor, targets: Tensor) -> Tensor:
        p = logits.double().softmax(1)
        return -torch.xlogy(p, p).sum(1)


class _Forgetting(Trajectories):
    """How often right turned to wrong (Toneva et al., arXiv 1812.05159, section 3).

    A sample that was never right counts as more forgotten than every other: with the number of snapshots.
    """

    def __init__(self, samples: int, device: torch.device) -> None:
        super().__init__(samples, device)
        for name, dtype in (("right", torch.bool), ("learned", torch.bool), ("forgotten", torch.int32)):
            self.tensors[name] = torch.zeros(samples, dtype=dtype, device=device)

    def measure(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.argmax(1) == targets

    def advance(self, seen: Tensor, measured: Tensor) -> None:
        right = measured == 1  # each time it was observed
        self.tensors["forgotten"] += seen & self.tensors["right"] & ~right
        self.tensors["learned"] |= seen & right
        self.tensors["right"].copy_(torch.where(seen, right, self.tensors["right"]))

    def scores(self) -> Tensor:
        never = self.tensors["snapshots"].max()
        return torch.where(self.tensors["learned"], self.tensors["forgotten"], never).double()


class _Tdds(Trajectories):
    """Temporal dual-depth score (Zhang et al., arXiv 2311.13613), as its authors' code computes it.

        d_t = sum_c | p_{t+1,c} (log p_{t+1,c} - log p_{t,c}) |        R_k = || d - mean(d) ||_2 over J snapshots
        S = sum_k R_k beta (1 - beta)^(T-J-k)

    Windows slide by one snapshot, so S is `(1 - beta) S + beta R` at each new one. J = min(10, T): a sample with fewer
    than 10 snapshots has one window over all of them. Three are needed, since a window of two has no spread.
    Keeps `samples * classes` float32 numbers twice.
    """

    least = 3

    def __init__(self, samples: int, device: torch.device, classes: int) -> None:
        super().__init__(samples, device, (classes,))
        self.tensors["logits"] = torch.zeros(samples, classes, device=device)
        self.tensors["divergences"] = torch.zeros(samples, WINDOW - 1, dtype=torch.float64, device=device)
        self.tensors["average"] = torch.zeros(samples, dtype=torch.float64, device=device)

    def measure(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits

    def advance(self, seen: Tensor, measured: Tensor) -> None:
        last, kept, average = (self.tensors[name] for name in ("logits", "divergences", "average"))
        rows = [slice(start, start + ROWS) for start in range(0, len(last), ROWS)]
        newest = torch.cat([_divergence(last[part], measured[part]) for part in rows])
        snapshots = self.tensors["snapshots"]
        slid = torch.cat([kept[:, 1:], newest[:, None]], dim=1)
        # what the first snapshot seems to differ by is older than any window
        kept.copy_(torch.where(seen[:, None], slid, kept))
        moved = (1 - NEWEST) * average + NEWEST * _spread(kept, torch.ones_like(kept, dtype=torch.bool))
        average.copy_(torch.where(seen & (snapshots >= WINDOW), moved, average))
        last.copy_(torch.where(seen[:, None], measured, last))

    def scores(self) -> Tensor:
        kept, snapshots = self.tensors["divergences"], self.tensors["snapshots"]
        age = torch.arange(WINDOW - 1, 0, -1, device=kept.device)
        only = NEWEST * _spread(kept, age < snapshots[:, None])
        return torch.where(snapshots < WINDOW, only, self.tensors["average"])


def _divergence(before: Tensor, after: Tensor) -> Tensor:
    old, new = before.double().log_softmax(1), after.double().log_softmax(1)
    return (new.exp() * (new - old)).abs().sum(1)


def _spread(values: Tensor, among: Tensor) -> Tensor:
    """`|| v - mean(v) ||_2` in each row over the entries in `among`."""
    mean = (values * among).sum(1) / among.sum(1).clamp(min=1)
    return ((values - mean[:, None]) * among).square().sum(1).sqrt()


def trajectories(score: Score, samples: int, classes: int, device: torch.device) -> Trajectories:
    """Empty trajectories that give this score."""
    match score:
        case "tdds":
            return _Tdds(samples, device, classes)
        case "el2n":
            return _El2n(samples, device)
        case "entropy":
            return _Entropy(samples, device)
        case "forgetting":
            return _Forgetting(samples, device)
