"""Ranks that train together: two gloo processes compute what one does on the whole batch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mbqc.errors import PassError, UsageError
from mbqc.ir.modules import WidthBatchNorm
from mbqc.passes.train.parallel.ranks import Ranks, joined
from mbqc.passes.train.parallel.synchronised import SynchronisedBatchNorm
from mbqc.widths import Widths
from tests.passes.train.two_ranks import two_ranks

SHARES = {"equal": (4, 4), "unequal": (5, 3)}
"""Samples of each rank."""


class Net(nn.Module):
    """Every kind of BatchNorm, with and without affine part, momentum, rows, and spatial dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.conv, self.by_width = nn.Conv2d(4, 4, 3), WidthBatchNorm("conv", 4, 1e-4, 0.2)
        self.switchable = WidthBatchNorm("conv", 4, 1e-4, None, "width")
        self.fc, self.flat, self.plain = (
            nn.Linear(4, 6),
            nn.BatchNorm1d(6, momentum=None),
            nn.BatchNorm1d(6, affine=False),
        )
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, widths: Widths) -> Tensor:
        x = self.conv(self.norm(self.first(x)).relu())
        x = self.switchable(self.by_width(x, widths).relu(), widths).square().mean((2, 3))
        return self.plain(self.flat(self.fc(x)).sigmoid())


def train(ranks: Ranks, shares: tuple[int, ...], frozen: bool) -> dict[str, Tensor]:
    """Four steps of SGD at widths 8 and 2; the losses, the gradient at the input and everything that was learnt."""
    torch.manual_seed(ranks.rank)
    net = Net().double()  # another one on each rank, until it is broadcast
    ranks.broadcast(net.state_dict())
    if frozen:
        net.eval()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    random = torch.Generator().manual_seed(5)
    result: dict[str, Tensor] = {}
    for step in range(4):
        images = 3 + torch.randn(sum(shares), 2, 7, 7, dtype=torch.float64, generator=random)
        targets = torch.randn(sum(shares), 6, dtype=torch.float64, generator=random)
        own = slice(sum(shares[: ranks.rank]), sum(shares[: ranks.rank + 1])) if ranks.world > 1 else slice(None)
        x = images[own].requires_grad_()
        optimizer.zero_grad()
        with ranks.synchronised():
            output = net(x, Widths((("conv", 8 - 6 * (step % 2)),)))
        weight = len(x) * ranks.world / sum(shares)
        loss = (output - targets[own]).square().mean() * weight
        loss.backward()
        ranks.average_gradients(net.parameters())
        assert net.unused.grad is None
        optimizer.step()
        result[f"loss {step}"] = ranks.sum(loss) / ranks.world
        by_sample = torch.zeros_like(images)
        by_sample[own] = x.grad / ranks.world
        result[f"input {step}"] = ranks.sum(by_sample)
    return result | net.state_dict()


def work(rank: int, port: int, folder: Path) -> None:
    """One of two ranks: trains, speaks with the other; then rank 1 is killed while rank 0 waits for it."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    try:
        with joined(torch.device("cpu"), timedelta(seconds=100)) as ranks:
            assert (ranks.rank, ranks.world, ranks.is_first) == (rank, 2, rank == 0)
            found: dict[str, Any] = {name: train(ranks, shares, False) for name, shares in SHARES.items()}
            found["frozen"] = train(ranks, SHARES["equal"], True)
            found["sum"] = ranks.sum(torch.tensor([1.0, rank]))
            found["gather"] = ranks.gather(torch.tensor([[rank, 5]]))
            found["any"] = [ranks.any(False), ranks.any(rank == 1), ranks.any(True)]
            torch.save(found, folder / f"{rank}.pt")
            dist.barrier()
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.barrier()
    except PassError as error:
        (folder / "error.txt").write_text(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What two ranks left behind."""
    with two_ranks(work, tmp_path_factory.mktemp("ranks"), 120) as folder:
        yield folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each rank computed."""
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", [*SHARES, "frozen"])
def test_two_ranks_are_one_process_on_the_whole_batch(found: list[dict[str, Any]], case: str) -> None:
    """Losses, gradients, weights and running statistics, float64."""
    expected = train(Ranks(), SHARES.get(case, SHARES["equal"]), case == "frozen")
    for key, value in expected.items():
        torch.testing.assert_close(
            found[0][case][key], value, rtol=1e-12, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}"
        )
    moved = not torch.equal(expected["norm.running_mean"], torch.zeros(4, dtype=torch.float64))
    assert moved == (case != "frozen")


@pytest.mark.parametrize("case", [*SHARES, "frozen"])
def test_all_ranks_hold_the_same_to_the_last_bit(found: list[dict[str, Any]], case: str) -> None:
    first, second = (each[case] for each in found)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_ranks_add_gather_and_hear_of_each_other(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert each["sum"].tolist() == [2, 1]
        assert each["gather"].tolist() == [[0, 5], [1, 5]]
        assert each["any"] == [False, True, True]


def test_a_killed_rank_ends_the_others_with_one_clear_error(folder: Path) -> None:
    assert (folder / "error.txt").read_text() == (
        "rank 0 lost rank 1, which ended or does not answer\n"
        "  try: the last checkpoint is kept; start again with --resume"
    )


# One process, and wrong surroundings

ELSEWHERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(torch.device("cpu")) as ranks:
        assert ranks == Ranks(0, 1, torch.device("cpu"))
        assert not dist.is_initialized()
        assert ranks.any(True)
        assert not ranks.any(False)
        assert ranks.sum(torch.ones(2)).tolist() == [1, 1]
        assert ranks.gather(torch.ones(2)).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2"}, "RANK is ''"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK=2 is not one of 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, "where the processes meet"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}, "MASTER_ADDR and MASTER_PORT"),
    ],
)
def test_an_environment_that_torchrun_did_not_make_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", *ELSEWHERE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message), joined(torch.device("cpu")):
        pass


def test_errors_of_ones_own_pass_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> None:
        pass

    for name, value in (ELSEWHERE | {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        "mbqc.passes.train.parallel.ranks.rendezvous", lambda *_, **__: iter([(dist.HashStore(), 0, 2)])
    )
    monkeypatch.setattr(dist, "init_process_group", nothing)
    monkeypatch.setattr(dist, "destroy_process_group", nothing)
    with pytest.raises(RuntimeError, match="mine"), joined(torch.device("cpu")):
        raise RuntimeError("mine")


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_gradients_of_synchronised_batch_norm_are_its_derivatives(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    """Finite differences, in a world of one."""
    monkeypatch.setattr(dist, "all_gather", lambda parts, own: parts[0].copy_(own))
    monkeypatch.setattr(dist, "all_reduce", lambda sums: None)
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, dtype=torch.float64, generator=random) for s in (shape, 3, 3))

    def normalize(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with SynchronisedBatchNorm(1):
            return nn.functional.batch_norm(x, None, None, weight, bias, training=True)

    assert torch.autograd.gradcheck(normalize, tuple(t.requires_grad_() for t in (x, weight, bias)))
