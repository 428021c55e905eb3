"""When samples are scored and coresets selected."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor

from mbqc.errors import DataError, PipelineError
from mbqc.ir.quantized import quantized_layers
from mbqc.passes.train.coreset.scores import Recorder
from mbqc.passes.train.coreset.selection import BATCH, coreset_size, select, share_size
from mbqc.passes.train.feeds import WHAT, Fed, Feeds
from mbqc.passes.train.judge import in_eval_mode, prepared
from mbqc.passes.train.randomness import seed_everything
from mbqc.passes.train.state import State
from mbqc.passes.train.task import Task
from mbqc.pipeline.objective import require_in_range
from mbqc.widths import resolve


class Subsets:
    """Gives each width its coreset once the warm-up epochs, whose training forwards score the samples, are over.

    Raises:
        DataError: the data cannot be read by index, or is too small for coresets; or scores need labels of the model's
            classes, which it has not.
        PipelineError: scores need a model that gives [N, classes].
    """

    def __init__(self, task: Task, feeds: Feeds) -> None:
        options = task.options
        self._graph, self._options, self._bits = task.graph, options, task.bits
        self._feeds, self._ranks, self._seed = feeds, task.ranks, task.context.seed
        if feeds.samples is None:
            raise DataError(
                "coresets choose samples, but the training data comes in batches",
                hint="train_data() must give a Dataset, a DataLoader over one, or tensors",
            )
        self._samples, self._selected = len(feeds.samples), dict[int, Tensor]()
        self._recorder: Recorder | None = None  # none where no score is read, or will be
        if options.coreset == "random":
            self._size = share_size(self._samples, options.keep, feeds.batch, BATCH)
            return
        assert options.coreset != "none", "who makes coresets wants some"
        self._targets, classes = feeds.samples.targets(), task.classes
        coreset_size(self._targets, options.keep, feeds.batch)
        if classes is None or classes < 2:
            message = "samples are scored by outputs [N, classes], which this model does not give"
            raise PipelineError(message, hint="coreset=random")
        require_in_range(self._targets, classes, WHAT)
        self._recorder = Recorder(options.coreset, self._samples, classes, task.bits, device=task.ranks.device)

    def begin_epoch(self, epoch: int, state: State) -> None:
        """Selects coresets where it is time to; after the warm-up that takes scores of all samples first."""
        since, every = epoch - self._options.coreset_warmup, self._options.resample
        if self._options.coreset == "random" and since >= 0:
            self._feeds.use_coresets(dict.fromkeys(self._bits, torch.arange(self._samples)), take=self._size)
        again = every > 0 and since > 0 and since % every == 0
        if self._recorder is None or not (again or since == 0):
            return
        if again:
            with state.clock("scoring"):
                self._score(self._recorder, epoch, {bits: torch.arange(self._samples) for bits in self._bits})
        with state.clock("selecting"):
            self._select(self._recorder, epoch)
        state.watch.begin_anew()
        if not every or epoch + every >= self._options.epochs:
            self._recorder = None  # tdds keeps all outputs on the device, twice

    def observe(self, epoch: int, bits: int, fed: Fed, output: Any) -> None:
        """Notes what the model said in the training forward of a warm-up epoch, which costs no pass of its own."""
        if self._recorder is not None and epoch < self._options.coreset_warmup:
            assert fed.indices is not None, "coresets are of samples"
            self._recorder.observe(bits, fed.indices, output, fed.target)

    def end_epoch(self, epoch: int, state: State) -> None:
        """Scores the samples that a width has not met in a warm-up epoch (a short last batch, a sandwich)."""
        if self._recorder is not None and epoch < self._options.coreset_warmup:
            with state.clock("scoring"):
                missing = {bits: self._recorder.unseen(bits, self._sum) for bits in self._bits}
                self._score(self._recorder, epoch, missing)

    def _score(self, recorder: Recorder, epoch: int, missing: dict[int, Tensor]) -> None:
        """Ends a snapshot, after a forward pass over the `missing` samples of each width."""
        seed_everything(f"{self._seed} scoring {epoch} {self._ranks.rank}")
        layers = quantized_layers(self._graph)
        dtype = next(self._graph.parameters()).dtype
        with in_eval_mode(self._graph), torch.no_grad():
            for bits, indices in missing.items():
                for fed in self._feeds.read(indices):
                    output = self._graph(*prepared(fed.inputs, dtype), resolve(bits, layers))
                    assert fed.indices is not None, "asked for"
                    recorder.observe(bits, fed.indices, output, fed.target)
        recorder.end_snapshot(self._sum)

    def _sum(self, values: Tensor) -> None:
        values.copy_(self._ranks.sum(values))

    def _select(self, recorder: Recorder, epoch: int) -> None:
        for bits in self._bits:
            generator = torch.Generator().manual_seed(Random(f"{self._seed} {epoch} {bits}").getrandbits(63))
            scores, options = recorder.scores(bits), self._options
            self._selected[bits] = select(scores, self._targets, options.keep, options.selection, generator)
        self._feeds.use_coresets(self._selected)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps; all ranks ask for it together."""
        scores = self._recorder.state(self._sum) if self._recorder is not None else {}
        return scores | {f"selected.{bits}": kept for bits, kept in self._selected.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state()`."""
        selected = {name: value for name, value in state.items() if name.startswith("selected.")}
        scores = {name: value for name, value in state.items() if name not in selected}
        if self._recorder is not None and scores:
            self._recorder.restore(scores, self._ranks.rank)
        else:
            self._recorder = None
        self._selected = {int(name.partition(".")[2]): value for name, value in selected.items()}
        self._feeds.use_coresets(self._selected)
