"""A training from its first round to its last: epochs, coresets, BatchNorm, judging, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import fx

from mbqc.errors import DataError, MbqcError
from mbqc.ir.norms import estimate, freeze_statistics, nearest_rows, unfreeze_statistics
from mbqc.ir.quantized import quantized_layers
from mbqc.numerics import ALL_BITS
from mbqc.passes.train.checkpoint.interrupt import Interrupt, interruptible
from mbqc.passes.train.checkpoint.saving import Part, Saver
from mbqc.passes.train.coreset.subsets import Subsets
from mbqc.passes.train.feeds import WHAT, Fed, Feeds, Round
from mbqc.passes.train.history import draw_curves, write_history
from mbqc.passes.train.judge import float_metric, metrics, prepared
from mbqc.passes.train.loop import Stepper
from mbqc.passes.train.parallel.ranks import Ranks
from mbqc.passes.train.state import Mean, State
from mbqc.pipeline import Context
from mbqc.pipeline.context import Advance
from mbqc.pipeline.training import EpochRecord, TrainingResult
from mbqc.widths import resolve

if TYPE_CHECKING:
    from mbqc.passes.train.train import Train

ESTIMATION_BATCHES = 200
"""From which BatchNorm statistics are re-estimated."""


class Trainer:
    """Trains a graph as the options say.

    Args:
        bits: the widths to train, highest first.

    Attributes:
        graph: the one that `run` has trained; another than the one given where BatchNorm was re-estimated.
    """

    def __init__(
        self, graph: fx.GraphModule, options: Train, bits: Sequence[int], context: Context, ranks: Ranks
    ) -> None:
        self.graph = graph
        self._graph, self._options, self._bits, self._context = graph, options, tuple(bits), context
        self._ranks, self._state, self._frozen = ranks, State(), False
        self._feeds = Feeds(context, options.batch, ranks)
        self._subsets: Subsets | None = None
        self._rounds = options.epochs * self._feeds.rounds()
        if options.coreset != "none":
            self._subsets = Subsets(graph, options, bits, self._feeds, context, ranks)
            small = options.epochs - options.coreset_warmup
            self._rounds += small * (self._feeds.rounds(options.keep) - self._feeds.rounds())
        self._stepper = Stepper(graph, options, bits, self._rounds, context, ranks)
        parts: dict[str, Part] = {"weights": self._stepper.weights, "scales": self._stepper.scales}
        if self._subsets is not None:
            parts["subsets"] = self._subsets
        self._saver = Saver(graph, options, parts, context, ranks)

    def run(self) -> TrainingResult:
        """Trains and judges.

        Raises:
            PassError, DataError, CheckpointError: see `Train.run`.
            MbqcError: a signal asked to stop.
        """
        resumed = self._saver.start()
        if resumed is None:
            with self._state.clock("evaluating"):
                self._state.exact = float_metric(self._graph, self._context)
                self._state.before = metrics(self._graph, ALL_BITS, self._context)
        else:
            self._state = resumed
            self._feeds.replay(resumed.epoch)
        self._graph.train()
        with interruptible() as interrupt, self._context.progress("training", self._rounds) as advance:
            for _ in range(self._state.done):
                advance()
            while self._state.epoch < self._options.epochs:
                self._epoch(interrupt, advance)
                if self._ranks.any(interrupt.requested):  # while it was judged and saved
                    raise _stopped(interrupt, self._state, self._context)
        unfreeze_statistics(self._graph)
        folder = self._context.folder
        if (
            folder is not None
            and self._ranks.is_first
            and not draw_curves(folder, self._state.records, self._state.exact)
        ):
            self._context.report.add("train", "info", "", "no curves: matplotlib is missing (pip install 'mbqc[plot]')")
        return self._result()

    def _epoch(self, interrupt: Interrupt, advance: Advance) -> None:
        """One epoch, or the rest of it."""
        state, before = self._state, self._state.round
        if self._subsets is not None and (before == 0 or self._options.selection == "fresh"):
            self._subsets.begin_epoch(state.epoch, state)
        for index, fed in enumerate(self._feeds.epoch(state.epoch)):
            self._require_expected(index)
            if index < before:
                self._stepper.skip(fed, state.done - before + index)
                continue
            self._round(fed)
            advance(self._status())
            stop = self._ranks.any(interrupt.requested)
            if stop or state.done % self._options.checkpoint == 0:
                self._saver.save(state)
            if stop:
                raise _stopped(interrupt, state, self._context)
        if self._subsets is not None:
            self._subsets.end_epoch(state.epoch, state)
        self._close_epoch()

    def _require_expected(self, index: int) -> None:
        """The learning rate falls over as many rounds as the data promised."""
        expected = self._feeds.rounds()
        if index >= expected:
            raise DataError(
                f"an epoch has more than the {expected} batches that it said or had before",
                where=WHAT,
                hint="train_data() must give as many in every epoch",
            )

    def _round(self, fed: Round) -> None:
        state = self._state
        if not self._frozen and state.done >= (1.0 - self._options.bn_freeze) * self._rounds:
            freeze_statistics(self._graph)
            self._frozen = True
        with state.clock("training"):
            self._stepper.round(fed, state.done, self._observe)
        state.round, state.done = state.round + 1, state.done + 1

    def _observe(self, bits: int, fed: Fed, output: Any, loss: float) -> None:
        """After the step of a width."""
        state = self._state
        state.steps += 1
        state.losses.setdefault(bits, Mean()).add(loss)
        if self._options.alrs != "off":
            state.clamped.setdefault(bits, Mean()).add(self._stepper.scales.clamped)
        if self._subsets is not None:
            with state.clock("scoring"):
                self._subsets.observe(state.epoch, bits, fed, output)

    def _close_epoch(self) -> None:
        state, options = self._state, self._options
        judged: dict[int, float] = {}
        if options.evaluate and (state.epoch + 1) % options.evaluate == 0:
            with state.clock("evaluating"):
                judged = metrics(self._graph, self._bits, self._context)
        state.records.append(
            EpochRecord(
                epoch=state.epoch + 1,
                steps=state.steps,
                rate=self._stepper.rate(state.done),
                loss={bits: mean.value for bits, mean in sorted(state.losses.items(), reverse=True)},
                metric=judged,
                clamped={bits: mean.value for bits, mean in state.clamped.items()},
                frozen=self._frozen,
            )
        )
        state.epoch, state.round, state.losses, state.clamped = state.epoch + 1, 0, {}, {}
        self._saver.save(state)
        if self._context.folder is not None and self._ranks.rank == 0:
            write_history(self._context.folder, state)

    def _status(self) -> str:
        losses = sorted(self._state.losses.items(), reverse=True)
        text = "loss " + ", ".join(f"{bits}: {mean.value:.3f}" for bits, mean in losses)
        judged = self._state.records[-1].metric if self._state.records else {}
        return text + (f"; metric {', '.join(f'{b}: {value:.2f}' for b, value in judged.items())}" if judged else "")

    def _result(self) -> TrainingResult:
        state, layers = self._state, quantized_layers(self._graph)
        nearest_rows(self._graph, [resolve(bits, layers) for bits in self._bits])
        with state.clock("evaluating"):
            after = metrics(self._graph, ALL_BITS, self._context)
        graphs = self._reestimated()
        with state.clock("evaluating"):
            pooled, separate = (metrics(g, ALL_BITS, self._context) for g in graphs.values()) if graphs else ({}, {})
        self.graph = graphs.get(self._options.reestimate, self._graph)
        return TrainingResult(
            trained=self._bits,
            exact=state.exact,
            before=state.before,
            after=after,
            pooled=pooled,
            separate=separate,
            epochs=tuple(state.records),
            seconds=dict(state.seconds),
        )

    def _reestimated(self) -> dict[str, fx.GraphModule]:
        """Copies of the graph with BatchNorm statistics `pooled` over the trained widths, and for each `width`."""
        if self._options.reestimate == "none":
            return {}
        layers = quantized_layers(self._graph)
        trained, every = ([resolve(b, layers) for b in bits] for bits in (self._bits, ALL_BITS))
        pooled, separate = copy.deepcopy(self._graph), copy.deepcopy(self._graph)
        with self._state.clock("BatchNorm"):
            dtype = next(self._graph.parameters()).dtype
            batches = [prepared(inputs, dtype) for inputs in self._feeds.inputs(ESTIMATION_BATCHES)]
            estimate(pooled, batches, trained, per_width=False, progress=self._context.progress)
            estimate(separate, batches, every, per_width=True, progress=self._context.progress)
            for graph in (pooled, separate):  # each rank may have drawn an augmentation of its own
                self._ranks.broadcast(graph.state_dict())
        return {"pooled": pooled, "width": separate}


def _stopped(interrupt: Interrupt, state: State, context: Context) -> MbqcError:
    name = interrupt.signal.name if interrupt.signal is not None else "a signal to another rank"
    kept = "go on with --resume" if context.folder is not None else "with a folder for checkpoints it could go on"
    return MbqcError(f"stopped by {name} after {state.done} rounds of training", hint=kept)
