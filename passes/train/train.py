"""The pass: prepares the graph, trains it, judges it at every width, and reports."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import fx

from mbqc.devices import CPU
from mbqc.errors import PassError, PipelineError
from mbqc.ir.graph import place
from mbqc.ir.modules import ActivationQuantizer
from mbqc.ir.quantized import quantized_layers
from mbqc.numerics import ALL_BITS
from mbqc.passes.train.alrs import Rule
from mbqc.passes.train.coreset.scores import Score
from mbqc.passes.train.coreset.selection import Selection
from mbqc.passes.train.optimizers import Scales
from mbqc.passes.train.parallel.ranks import joined
from mbqc.passes.train.randomness import kept
from mbqc.passes.train.rounds import Schedule
from mbqc.passes.train.task import Task
from mbqc.passes.train.trainer import Trainer
from mbqc.pipeline import Context, Pass, Property
from mbqc.properties import QUANTIZED, SENSITIVITY


@dataclass(frozen=True)
class Train(Pass):
    """Trains one set of weights for several widths: a step for each width on every batch.

    Needs train_data() and, unless outputs are scores [N, classes] and targets labels, loss(). With eval_data() every
    width from 8 to 1 is judged before and after.

    Options:
        epochs: sweeps over the data.
        batch: samples a step, where the data is a Dataset or tensors; a DataLoader or batches keep their own.
        rate: highest learning rate of weights (Adam).
        weight_decay: of layers' weights.
        scale_rate: highest learning rate of scales; `lambda` of ALRS.
        schedule: how both rates go on after the warm-up.
        warmup: share of the steps in which the rates grow.
        clip: largest norm of the gradients of everything but scales together; 0 for no limit.
        label_smoothing: of the usual loss for labels.
        bits: widths to train; by default those that `quant{bits=...}` gave scales of their own.
        widths: for each batch `all` of them, or a `sandwich` of the highest, the lowest and a random one of the others.
        step: the optimizers after `each` width, or once a batch on the mean of all gradients (`accumulate`).
        scales: learned in the `log` domain, `raw`, or `frozen`.
        alrs: adaptive rates of scales, by the rule of the `paper`, or the same by `layer` or `channel`.
        distill: the lower widths learn from the `highest` one too, or all learn from the `float` model.
        switch: layers leave the width of the step for one drawn by `hasb`'s distribution, or a `uniform` one.
        switch_most: probability of that in the last epoch, to which it grows from epoch to epoch.
        bn_freeze: share of the steps, at the end, in which BatchNorm statistics stand still.
        reestimate: BatchNorm statistics from 200 batches at the end, `pooled` over the trained widths, or for each
            `width`; both are judged.
        coreset: each width trains on the share `keep` of the samples, `random` ones of its own that are new in every
            epoch, or those selected by these scores of its own.
        selection: by `top` scores, or equally many from ranges of scores without the highest 5 % (`stratified`).
        keep: share of the samples in a coreset.
        coreset_warmup: epochs on all samples, which also score them.
        resample: epochs after which samples are scored and selected again; 0 for never.
        evaluate: epochs after which the trained widths are judged; 0 for only at the end.
        checkpoint: rounds (one batch for all widths, of coresets one for each) after which a checkpoint is written; the
            end of an epoch writes one too. It waits while a width gives no better answer than a constant.
        precision: of the training's arithmetic; in `bfloat16` layers compute (autocast), while weights, statistics,
            quantizers, the loss and what is judged stay float32.
        capture: forward and backward passes are recorded as CUDA graphs and replayed; on one GPU, without `switch`.

    Source: Double Rounding, arXiv 2502.01199, algorithms A.2 and A.3; EMQNet, arXiv 2510.20673, for coresets.
    """

    epochs: int = 3
    batch: int = 128
    rate: float = 2e-3
    weight_decay: float = 5e-5
    scale_rate: float = 2e-3
    schedule: Schedule = "cosine"
    warmup: float = 0.0
    clip: float = 0.0
    label_smoothing: float = 0.0
    bits: tuple[int, ...] = ()
    widths: Literal["all", "sandwich"] = "all"
    step: Literal["each", "accumulate"] = "each"
    scales: Scales = "log"
    alrs: Rule = "off"
    distill: Literal["none", "highest", "float"] = "none"
    switch: Literal["none", "uniform", "hasb"] = "none"
    switch_most: float = 0.5
    bn_freeze: float = 0.35
    reestimate: Literal["none", "pooled", "width"] = "none"
    coreset: Literal["none", "random"] | Score = "none"
    selection: Selection = "stratified"
    keep: float = 0.2
    coreset_warmup: int = 1
    resample: int = 2
    evaluate: int = 1
    checkpoint: int = 500
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    capture: bool = False

    name: ClassVar[str] = "train"
    requires: ClassVar[tuple[Property, ...]] = (QUANTIZED,)
    clears: ClassVar[tuple[Property, ...]] = (SENSITIVITY,)
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for wrong, message, hint in (*self._out_of_range(), *self._at_odds()):
            if wrong:
                raise PipelineError(message, where="pass train", hint=hint)
        if self.switch == "hasb":  # the class's own are those of every other choice
            object.__setattr__(self, "requires", (QUANTIZED, SENSITIVITY))

    def _out_of_range(self) -> Iterator[tuple[bool, str, str | None]]:
        """Values that no training can use, whatever the other options are."""
        for name in ("epochs", "batch", "checkpoint"):
            yield getattr(self, name) < 1, f"{name}={getattr(self, name)} must be at least 1", None
        for name in ("rate", "scale_rate", "weight_decay", "clip"):
            yield not math.isfinite(getattr(self, name)), f"{name}={getattr(self, name)} is no finite number", None
        for name in ("rate", "scale_rate"):
            yield getattr(self, name) <= 0, f"{name}={getattr(self, name)} must be positive", None
        for name in ("resample", "evaluate", "weight_decay", "clip", "coreset_warmup"):
            yield getattr(self, name) < 0, f"{name}={getattr(self, name)} must not be negative", None
        for name in ("warmup", "label_smoothing", "switch_most", "bn_freeze"):
            yield not 0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} must lie in [0, 1]", None
        yield not 0 < self.keep <= 1, f"keep={self.keep} must lie in (0, 1]", None
        strange = any(b not in ALL_BITS for b in self.bits) or len(set(self.bits)) != len(self.bits)
        yield strange, f"bits={':'.join(map(str, self.bits))} must be different widths from 1 to 8", None

    def _at_odds(self) -> Iterator[tuple[bool, str, str | None]]:
        """Options that do not go together."""
        for idle, where, needed, names in (
            (self.coreset == "none", "without coreset", "coreset=...", ("keep", "coreset_warmup")),
            (self.coreset == "none", "without coreset", "coreset=el2n", ("selection", "resample")),
            (self.coreset == "random", "with coreset=random", "coreset=el2n", ("selection", "resample")),
            (self.switch == "none", "without switch", "switch=...", ("switch_most",)),
        ):
            for name in names:
                given = getattr(self, name) != getattr(type(self), name)
                yield idle and given, f"{name} does nothing {where}", f"{needed}, or leave {name} out"
        yield (
            self.scales == "frozen" and self.alrs != "off",
            "alrs sets rates of scales, which scales=frozen keeps",
            None,
        )
        drawn = "capture=true replays the same widths each time, but switch draws others"
        yield self.capture and self.switch != "none", drawn, "capture=false"
        rates = "alrs has a rate for each width, but step=accumulate makes one step for all"
        yield self.alrs != "off" and self.step == "accumulate", rates, "step=each"
        if self.coreset == "none":
            return
        batches = "distill=highest compares widths on one batch, but coresets give each width its own"
        yield self.distill == "highest", batches, "distill=float"
        least = 0 if self.coreset == "random" else 3 if self.coreset == "tdds" else 1
        window = f"coreset_warmup={self.coreset_warmup} must be at least {least} with coreset={self.coreset}"
        yield self.coreset_warmup < least, window, None
        sweep = f"coreset_warmup={self.coreset_warmup} must be less than epochs={self.epochs}"
        yield self.coreset_warmup >= self.epochs, sweep, "more epochs"

    def run(self, graph: fx.GraphModule, context: Context) -> fx.GraphModule:
        """The trained graph, in eval mode and on the CPU.

        Raises:
            PassError: a width has no scales in the graph, the loss is no longer finite, what the model knew is lost, or
                a GPU has not enough memory.
            DataError: there is no training data, or it does not fit.
            CheckpointError: a checkpoint cannot be written, or there is none to resume from that fits.
        """
        if context.labelled is None:
            raise PassError("there is no training data", hint="define train_data(), batches of inputs and targets")
        if self.label_smoothing and context.loss is not None:
            raise PassError(
                "label_smoothing is part of the usual loss, but there is a loss() of yours", hint="smooth there"
            )
        if self.precision == "float64":
            graph.double()
        if self.capture and context.device.type != "cuda":
            message = f"capture=true records CUDA graphs, but training is on {context.device}"
            raise PassError(message, hint="--device cuda, or capture=false")
        bits = self._bits(graph)
        still = [name for name, parameter in graph.named_parameters() if not parameter.requires_grad]
        if still:
            listed = f"{', '.join(still[:3])}{', ...' if len(still) > 3 else ''}"
            message = f"{len(still)} parameter(s) take no gradient and keep their values: {listed}"
            context.report.add(self.name, "warning", "", message)
        with joined(context.device) as ranks:
            if self.capture and ranks.world > 1:
                message = f"capture=true is for one process, but {ranks.world} train together"
                raise PassError(message, hint="capture=false")
            place(graph, ranks.device)
            try:
                ranks.broadcast(graph.state_dict())  # earlier passes ran on each rank, maybe on different machines
                with kept(ranks.device):
                    trainer = Trainer(Task(graph, self, bits, context, ranks))
                    context.report.training = trainer.run()
            except torch.OutOfMemoryError as error:
                raise PassError(f"{ranks.device} has not enough memory", hint="train{batch=...}, smaller") from error
            finally:
                place(graph, CPU)
        trained = trainer.graph.float().eval()
        place(trained, CPU)
        return trained

    def _bits(self, graph: fx.GraphModule) -> tuple[int, ...]:
        """The widths to train, highest first."""
        grids = [m.bits for m in graph.modules() if isinstance(m, ActivationQuantizer) and m.layers]
        known = set(ALL_BITS).intersection(*grids)
        for asked in self.bits:
            if asked not in known:
                listed = ":".join(map(str, sorted({asked, *known}, reverse=True)))
                raise PassError(f"the graph has no activation scales for {asked} bits", hint=f"quant{{bits={listed}}}")
        if all(pinned is not None for pinned in quantized_layers(graph).values()):
            raise PassError("every layer keeps its own width: nothing would train", hint="quant{pin_ends=false}")
        bits = tuple(sorted(self.bits or known, reverse=True))
        for option in ("widths=sandwich", "distill=highest"):
            name, _, value = option.partition("=")
            if len(bits) == 1 and getattr(self, name) == value:
                raise PassError(f"{option} needs at least 2 widths, not only {bits[0]} bits", hint="bits=8:4:2")
        return bits
