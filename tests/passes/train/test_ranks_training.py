"""Training on two ranks, from the pass's options to the weights: what one process gives at the same global batch."""

from __future__ import annotations

import copy
import os
import signal
import statistics
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mbqc.errors import MbqcError
from mbqc.passes.train.feeds import Feeds
from mbqc.passes.train.parallel.ranks import joined
from tests.passes.train.small import BATCH, Noisy, context, differing, quantized, run, stripes, trained, weights
from tests.passes.train.two_ranks import two_ranks

EXACT = {
    "plain": "epochs=3,evaluate=0,precision=float64",
    "accumulate": "epochs=1,step=accumulate,clip=0.5,evaluate=0,precision=float64",
    "sandwich and switch": "epochs=1,widths=sandwich,switch=uniform,evaluate=0,precision=float64",
    "distilled": "epochs=1,distill=highest,alrs=layer,scales=raw,evaluate=0,precision=float64",
    "top": "epochs=3,coreset=el2n,selection=top,keep=0.4,resample=1,evaluate=0,precision=float64",
    "stratified": "epochs=2,coreset=entropy,widths=sandwich,keep=0.4,evaluate=0,precision=float64",
    "fresh": "epochs=2,coreset=random,keep=0.5,evaluate=0,precision=float64",
}
"""float64: what is left are sums in another order."""

ROUGH = {
    "plain": "epochs=3",
    "accumulate": "epochs=3,step=accumulate",
    "switch": "epochs=3,switch=uniform",
    "distilled": "epochs=3,distill=float",
    "rates": "epochs=3,alrs=layer,scales=raw",
}
"""float32, 54 steps each."""

BROKEN = "epochs=3,checkpoint=2,coreset=el2n,coreset_warmup=2,selection=top,keep=0.5,resample=1"
"""Six rounds an epoch, three widths: 18 losses; a checkpoint after every sixth."""


NOWHERE = Path(os.devnull)
"""No folder, and none can be made in it."""


class Stopped(BaseException):
    """What a kill looks like from within: nothing is caught, nothing is saved."""


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(output, target)


def loss_until(calls: int, then: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss to which something happens once it was asked for so many times."""
    left = iter(range(calls))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        found = cross_entropy(output, target)
        return found + then(output) if next(left, None) is None else found

    return loss


def stop(output: Tensor) -> Tensor:
    raise Stopped


def told(number: signal.Signals) -> Callable[[Tensor], Tensor]:
    """Sends the own process a signal."""

    def send(output: Tensor) -> Tensor:
        os.kill(os.getpid(), number)
        return torch.zeros(())

    return send


def training(options: str, folder: Path) -> dict[str, Any]:
    """What a training gave: all numbers of its last checkpoint, losses, metrics, the coresets of each selection."""
    coresets = []
    use = Feeds.use_coresets

    def noted(self: Feeds, subsets: dict[int, Tensor], take: int | None = None) -> None:
        coresets.append({bits: indices.tolist() for bits, indices in subsets.items()})
        use(self, subsets, take)

    with patch.object(Feeds, "use_coresets", noted):
        graph, result = trained(options, context(folder=folder))
    return {
        "weights": weights(graph),
        "last": load_file(max(folder.glob("step-*"))),
        "losses": [record.loss for record in result.epochs],
        "steps": result.epochs[-1].steps,
        "after": result.after,
        "coresets": coresets,
    }


def unbroken() -> tuple[dict[str, Tensor], object]:
    """Weights and records of a training that nothing stopped."""
    graph, result = trained(BROKEN, context(loss=cross_entropy))
    return weights(graph), result.epochs


def resumed(calls: int, folder: Path) -> tuple[dict[str, Tensor], object]:
    """Weights and records of a training that was killed after so many losses, then resumed."""
    try:
        trained(BROKEN, context(folder=folder, loss=loss_until(calls, stop)))
    except Stopped:
        graph, result = trained(BROKEN, context(folder=folder, loss=cross_entropy, resume=True))
    return weights(graph), result.epochs


def from_another_graph(rank: int) -> dict[str, Tensor]:
    """The weights of a training whose second rank came to another graph than the first."""
    graph = copy.deepcopy(quantized())
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter *= 1 + 0.1 * rank
    return weights(run(f"train{{batch={BATCH},epochs=1}}", graph, context()))


def full(path: Path, content: bytes) -> None:
    raise OSError(28, "No space left on device")


def error_of(options: str, **surroundings: Any) -> str:
    """The message with which a training ends."""
    with pytest.raises(MbqcError) as caught:
        trained(options, context(**surroundings))
    assert caught.value.exit_code == 1
    return str(caught.value)


def work(rank: int, port: int, folder: Path) -> None:
    """One of two ranks: all trainings, one behind the other; in the last one rank 1 is killed."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    last = folder / "killed"
    with joined(torch.device("cpu"), timedelta(seconds=100)):
        found: dict[str, Any] = {f"exact {name}": training(o, folder / f"e {name}") for name, o in EXACT.items()}
        found |= {f"rough {name}": training(options, folder / f"r {name}") for name, options in ROUGH.items()}
        found["another graph"] = from_another_graph(rank)
        found["unbroken"] = unbroken()
        kept = folder if rank == 0 else NOWHERE
        found["resumed"] = {calls: resumed(calls, kept / f"{calls}") for calls in (10, 31, 42)}
        found["no checkpoint"] = error_of("epochs=1", folder=kept / "none", resume=True)
        found["another run"] = error_of("epochs=1", folder=kept / "10", resume=True)
        for file in ("checkpoint.store", "history"):
            with patch(f"mbqc.passes.train.{file}.write_atomically", full):
                found[f"full disk, {file}"] = error_of("epochs=1", folder=kept / file)
        graph, result = trained("epochs=1,reestimate=width", context(labelled=Noisy()))
        found["estimated"] = [weights(graph), result.separate]
        nan = {"loss": loss_until(11, lambda output: (output * torch.nan).sum())} if rank else {}
        found["nan"] = error_of("epochs=1", **nan)
        steep = {"loss": loss_until(11, lambda output: (output * 0).sum().sqrt())} if rank else {}
        found["steep"] = error_of("epochs=1", **steep)
        found["unlike"] = error_of("epochs=1", labelled=stripes(96 - rank))
        found["batches"] = error_of("epochs=1", labelled=[stripes()])
        sigterm = {"loss": loss_until(10, told(signal.SIGTERM))} if rank else {}
        found["sigterm"] = error_of("epochs=1", folder=folder / "sigterm", **sigterm)
        kill = {"loss": loss_until(26, told(signal.SIGKILL))} if rank else {}
        torch.save(found, folder / f"{rank}.pt")
        (folder / "killed.txt").write_text(error_of("epochs=2,checkpoint=2", folder=last, **kill))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What two ranks left behind."""
    with two_ranks(work, tmp_path_factory.mktemp("ranks"), 300) as folder:
        yield folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each rank found."""
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two numbers."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def loss_distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    pairs = zip(one["losses"], other["losses"], strict=True)
    return max(abs(ours[bits] - theirs[bits]) for ours, theirs in pairs for bits in theirs)


@pytest.mark.parametrize("name", EXACT)
def test_two_ranks_are_one_process_at_the_same_global_batch(
    ranks: list[dict[str, Any]], tmp_path: Path, name: str
) -> None:
    """Weights, scales, the moments of both optimizers, statistics, scores, losses; coresets to the index."""
    one, two = training(EXACT[name], tmp_path), ranks[0][f"exact {name}"]
    assert one["steps"] == two["steps"]
    assert distance(one["last"], two["last"]) < 1e-12
    assert loss_distance(one, two) < 1e-12
    assert one["coresets"] == two["coresets"]
    assert (len(one["coresets"]) > 0) == ("coreset" in EXACT[name])
    assert one["after"] == two["after"]


def test_in_float32_they_agree_until_a_rounded_code_flips(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    """Sums in another order move a number by a rounding; on the edge between two codes that moves it by a whole code.

    One process whose batches come in another order is no nearer to itself, so the median stands for those without.
    """
    ones = {name: training(options, tmp_path / name) for name, options in ROUGH.items()}
    assert {one["steps"] for one in ones.values()} == {54}
    twos = {name: ranks[0][f"rough {name}"] for name in ROUGH}
    assert statistics.median(distance(ones[name]["weights"], twos[name]["weights"]) for name in ROUGH) < 1e-5
    assert statistics.median(loss_distance(ones[name], twos[name]) for name in ROUGH) < 1e-5


@pytest.mark.parametrize("name", [*(f"exact {name}" for name in EXACT), *(f"rough {name}" for name in ROUGH)])
def test_both_ranks_end_with_the_same_to_the_last_bit(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (found[name] for found in ranks)
    assert differing(first["weights"], second["weights"]) == []
    for part in ("losses", "coresets", "after"):
        assert first[part] == second[part]


def test_all_ranks_start_from_the_graph_of_the_first(ranks: list[dict[str, Any]]) -> None:
    first, second = (found["another graph"] for found in ranks)
    assert differing(first, second) == []


@pytest.mark.parametrize("calls", [10, 31, 42])
def test_killed_ranks_go_on_as_if_nothing_had_happened(ranks: list[dict[str, Any]], calls: int) -> None:
    """Within the first and the second of the epochs that score all samples, and within one on coresets."""
    for found in ranks:
        (whole, records), (again, others) = found["unbroken"], found["resumed"][calls]
        assert differing(whole, again) == []
        assert records == others


def test_the_first_rank_alone_needs_the_folder(ranks: list[dict[str, Any]], folder: Path) -> None:
    """The other one has none, goes on all the same, and ends with the same words."""
    for name, told in {
        "no checkpoint": f"pass train, {folder / 'none'}: there is no checkpoint to resume from",
        "another run": f"pass train, {max((folder / '10').glob('step-*'))}: belongs to another run; ",
        "full disk, checkpoint.store": "cannot save the checkpoint (there is no earlier checkpoint): No space left",
        "full disk, history": f"pass train, {folder / 'history' / 'history.json'}: cannot write: No space left",
    }.items():
        assert told in ranks[0][name]
        assert ranks[1][name] == ranks[0][name]


def test_estimated_statistics_are_the_same_whatever_a_rank_draws(ranks: list[dict[str, Any]]) -> None:
    (graph, metrics), (other, others) = (found["estimated"] for found in ranks)
    assert differing(graph, other) == []
    assert metrics == others


# Endings


def test_a_loss_of_one_rank_that_is_not_finite_ends_all(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["nan"].startswith("pass train: the loss is nan at 4 bits: the output is finite, so it is loss()\n")
    assert ranks[0]["nan"].startswith("pass train: the loss of another rank is not finite at 4 bits: it says where\n")


def test_a_gradient_of_one_rank_that_is_not_finite_ends_all(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["steep"].startswith("pass train: the gradient is not finite at 4 bits: the gradient of ")


def test_ranks_need_the_same_samples(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert "ranks have [96, 95] samples\n  try: give all samples to each rank" in found["unlike"]
        assert "several ranks share samples, but the training data comes in batches" in found["batches"]


def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(ranks: list[dict[str, Any]], folder: Path) -> None:
    assert ranks[1]["sigterm"].startswith("pass train: stopped by SIGTERM after 4 rounds of training\n")
    assert ranks[0]["sigterm"].startswith("pass train: stopped by a signal to another rank after 4 rounds")
    assert [path.name for path in (folder / "sigterm").glob("step-*")] == ["step-00000004.safetensors"]


def test_a_killed_rank_ends_the_others_with_one_clear_error(folder: Path) -> None:
    """And what was trained until then is not lost."""
    assert (folder / "killed.txt").read_text() == (
        "pass train: rank 0 lost rank 1, which ended or does not answer\n"
        "  try: the last checkpoint is kept; start again with --resume"
    )
    assert max(path.name for path in (folder / "killed").glob("step-*")) == "step-00000008.safetensors"
    _, result = trained("epochs=2,checkpoint=2", context(folder=folder / "killed", resume=True))
    assert result.epochs[-1].steps == 36
