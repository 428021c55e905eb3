"""A training from its first round to its last: epochs, coresets, BatchNorm, judging, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import fx

from mbqc.errors import DataError, MbqcError
from mbqc.ir.annotations import Sensitivity, Switching, drop_annotations
from mbqc.ir.norms import estimate, nearest_rows, trained_rows, unfreeze_statistics
from mbqc.ir.quantized import quantized_layers
from mbqc.numerics import ALL_BITS
from mbqc.passes.train.checkpoint.interrupt import Interrupt, interruptible
from mbqc.passes.train.checkpoint.saving import Part, Saver
from mbqc.passes.train.coreset.subsets import Subsets
from mbqc.passes.train.feeds import WHAT, Fed, Feeds, Round
from mbqc.passes.train.history import draw_curves, write_history
from mbqc.passes.train.judge import all_metrics, metrics, prepared
from mbqc.passes.train.loop import Stepper
from mbqc.passes.train.randomness import seeded
from mbqc.passes.train.state import Mean, State
from mbqc.passes.train.task import Task
from mbqc.pipeline import Context
from mbqc.pipeline.context import Advance
from mbqc.pipeline.training import EpochRecord, TrainingResult
from mbqc.widths import Widths, resolve

ESTIMATION_BATCHES = 200
"""From which BatchNorm statistics are re-estimated."""


class Trainer:
    """Trains a graph as the options say.

    Attributes:
        graph: the one that `run` has trained; another than the one given where BatchNorm was re-estimated.
    """

    def __init__(self, task: Task) -> None:
        self.graph, options = task.graph, task.options
        self._graph, self._options, self._bits, self._context = task.graph, options, task.bits, task.context
        self._ranks, self._state = task.ranks, State()
        self._due = False  # a checkpoint, which waits while a width is in doubt
        self._judged: dict[int, float] = {}  # trained widths, by this process after the last epoch
        self._feeds = Feeds(task)
        self._subsets: Subsets | None = None
        self._rounds = options.epochs * self._feeds.rounds()
        if options.coreset != "none":
            self._subsets = Subsets(task, self._feeds)
            small = options.epochs - options.coreset_warmup
            self._rounds += small * (self._feeds.rounds(options.keep) - self._feeds.rounds())
        self._stepper = Stepper(task, self._rounds)
        drop_annotations(task.graph, Sensitivity, Switching)  # of weights that will no longer be there
        parts: dict[str, Part] = {"weights": self._stepper.weights, "scales": self._stepper.scales}
        if self._subsets is not None:
            parts["subsets"] = self._subsets
        self._saver = Saver(task, parts, f"{self._rounds} rounds on {self._feeds}")

    def run(self) -> TrainingResult:
        """Trains and judges.

        Raises:
            PassError, DataError, CheckpointError: see `Train.run`.
            MbqcError: a signal asked to stop.
        """
        resumed = self._saver.start()
        if resumed is None:
            self._state.switching = self._stepper.draws
            with self._state.clock("evaluating"):
                self._state.exact, self._state.before = all_metrics(self._graph, self._context)
        else:
            self._state, self._stepper.draws = resumed, resumed.switching
            self._feeds.replay(resumed.epoch)
        self._graph.train()
        if self._frozen(self._state.done - 1):
            self._stepper.freeze_statistics()
        with interruptible() as interrupt, self._context.progress("training", self._rounds) as advance:
            for _ in range(self._state.done):
                advance()
            while self._state.epoch < self._options.epochs:
                self._epoch(interrupt, advance)
                if self._ranks.any(interrupt.requested):  # while it was judged and saved
                    if self._due:
                        self._save()
                    raise _stopped(interrupt, self._state, self._context)
        unfreeze_statistics(self._graph)
        self._graph.zero_grad()
        if others := self._stepper.not_captured:
            message = f"{others} passes were not replayed: their batches had another shape than the first"
            self._context.report.add("train", "fallback", "", message)
        result = self._result()
        folder = self._context.folder
        if folder is not None:
            self._ranks.by_first(lambda: self._write(folder, result))
        return result

    def _write(self, folder: Path, result: TrainingResult) -> None:
        write_history(folder, result)
        if not draw_curves(folder, result.epochs, result.exact):
            missing = "no curves: matplotlib is missing (pip install 'mbqc[plot]')"
            self._context.report.add("train", "info", "", missing)

    def _epoch(self, interrupt: Interrupt, advance: Advance) -> None:
        """One epoch, or the rest of it."""
        state, before = self._state, self._state.round
        if self._subsets is not None and (before == 0 or self._options.coreset == "random"):
            self._subsets.begin_epoch(state.epoch, state)
        index, rounds = 0, self._feeds.epoch(state.epoch)
        while (fed := self._read(rounds, state.done - before + index if index < before else state.done)) is not None:
            index += 1
            self._require_expected(index, at_most=True)
            if index <= before:
                continue
            self._round(fed)
            advance(self._status())
            stop = self._ranks.any(interrupt.requested)
            self._due |= state.done % self._options.checkpoint == 0
            if stop or (self._due and not state.watch.in_doubt):
                self._save()
            if stop:
                raise _stopped(interrupt, state, self._context)
        self._require_expected(index, at_most=False)
        if self._subsets is not None:
            self._subsets.end_epoch(state.epoch, state)
        self._close_epoch()

    def _read(self, rounds: Iterator[Round], done: int) -> dict[int, Fed] | None:
        """The batch of each width of the next round, None at the end of the epoch."""
        with self._state.clock("loading"):
            fed = next(rounds, None)
            return {bits: fed.batch(bits) for bits in self._stepper.chosen(done)} if fed is not None else None

    def _require_expected(self, batches: int, at_most: bool) -> None:
        """The learning rate falls over as many rounds as the data promised."""
        expected = self._feeds.rounds()
        if batches > expected or (batches < expected and not at_most and self._feeds.samples is None):
            raise DataError(
                f"an epoch has {'more' if batches > expected else 'less'} than the {expected} batches that it said or "
                "had before",
                where=WHAT,
                hint="train_data() must give as many in every epoch",
            )

    def _round(self, batches: dict[int, Fed]) -> None:
        state = self._state
        if self._frozen(state.done) and not self._frozen(state.done - 1):
            self._stepper.freeze_statistics()
        # after a resume the rounds before were read, but not trained: a loss must not draw what reading draws from
        seed = f"{self._context.seed} round {state.done} {self._ranks.rank}"
        with state.clock("training"), seeded(seed, self._ranks.device):
            self._stepper.round(batches, state.epoch, state.done, self._observe)
        state.round, state.done = state.round + 1, state.done + 1

    def _frozen(self, done: int) -> bool:
        """Whether BatchNorm statistics stand still in the round after `done` others."""
        return done >= (1.0 - self._options.bn_freeze) * self._rounds

    def _observe(self, bits: int, fed: Fed, output: Any, loss: float) -> None:
        """After the step of a width."""
        state = self._state

        def blind() -> float:
            return self._stepper.blind_loss(fed, output)

        if not state.losses:  # the first of an epoch
            state.watch.begin(loss, blind)
        state.steps += 1
        state.losses.setdefault(bits, Mean()).add(loss)
        if self._options.alrs != "off":
            state.clamped.setdefault(bits, Mean()).add(self._stepper.scales.clamped)
        if self._subsets is not None:
            with state.clock("scoring"):
                self._subsets.observe(state.epoch, bits, fed, output)
        if state.watch.add(bits, loss, blind):
            raise self._stepper.lost(bits, loss, state.done, state.watch)

    def _close_epoch(self) -> None:
        state, options = self._state, self._options
        self._judged = {}
        if options.evaluate and (state.epoch + 1) % options.evaluate == 0:
            with state.clock("evaluating"):
                self._judged = metrics(self._graph, self._bits, self._context)
        state.records.append(
            EpochRecord(
                epoch=state.epoch + 1,
                steps=state.steps,
                rate=self._stepper.rate(state.done),
                loss={bits: mean.value for bits, mean in sorted(state.losses.items(), reverse=True)},
                metric=self._judged,
                clamped={bits: mean.value for bits, mean in state.clamped.items()},
                frozen=self._frozen(state.done - 1),
            )
        )
        state.epoch, state.round, state.losses, state.clamped = state.epoch + 1, 0, {}, {}
        self._due = True
        if not state.watch.in_doubt:
            self._save()
        if (folder := self._context.folder) is not None:
            self._ranks.by_first(lambda: write_history(folder, self._so_far({})))

    def _save(self) -> None:
        self._saver.save(self._state)
        self._due = False

    def _status(self) -> str:
        losses = sorted(self._state.losses.items(), reverse=True)
        text = "loss " + ", ".join(f"{bits}: {mean.value:.3f}" for bits, mean in losses)
        judged = self._state.records[-1].metric if self._state.records else {}
        return text + (f"; metric {', '.join(f'{b}: {value:.2f}' for b, value in judged.items())}" if judged else "")

    def _result(self) -> TrainingResult:
        state, trained = self._state, [resolve(bits, quantized_layers(self._graph)) for bits in self._bits]
        rows = trained_rows(self._graph, trained)
        nearest_rows(self._graph, rows)
        with state.clock("evaluating"):
            rest = metrics(self._graph, [bits for bits in ALL_BITS if bits not in self._judged], self._context)
        after = dict(sorted((self._judged | rest).items()))
        graphs = self._reestimated(trained, rows)
        with state.clock("evaluating"):
            again = {name: metrics(graph, ALL_BITS, self._context) for name, graph in graphs.items()}
        self.graph = graphs.get(self._options.reestimate, self._graph)
        return replace(self._so_far(after), pooled=again.get("pooled", {}), separate=again.get("width", {}))

    def _so_far(self, after: dict[int, float]) -> TrainingResult:
        state = self._state
        records, seconds = tuple(state.records), dict(state.seconds)
        return TrainingResult(self._bits, state.exact, state.before, after, epochs=records, seconds=seconds)

    def _reestimated(self, trained: list[Widths], rows: dict[str, set[int]]) -> dict[str, fx.GraphModule]:
        """Copies of the graph with BatchNorm statistics `pooled` over the trained widths, and for each `width`."""
        if self._options.reestimate == "none":
            return {}
        every = [resolve(bits, quantized_layers(self._graph)) for bits in ALL_BITS]
        dtype = next(self._graph.parameters()).dtype
        pooled, separate = copy.deepcopy(self._graph), copy.deepcopy(self._graph)
        with self._state.clock("BatchNorm"):
            for graph, widths, per_width in ((pooled, trained, False), (separate, every, True)):
                batches = (prepared(inputs, dtype) for inputs in self._feeds.inputs(ESTIMATION_BATCHES))
                estimate(graph, batches, widths, per_width, self._context.progress)
                self._ranks.broadcast(graph.state_dict())  # each rank may have drawn an augmentation of its own
            nearest_rows(pooled, rows)
        return {"pooled": pooled, "width": separate}


def _stopped(interrupt: Interrupt, state: State, context: Context) -> MbqcError:
    name = interrupt.signal.name if interrupt.signal is not None else "a signal to another rank"
    kept = "go on with --resume" if context.folder is not None else "with a folder for checkpoints it could go on"
    return MbqcError(f"stopped by {name} after {state.done} rounds of training", hint=kept)
