"""Outputs of a float model and of its artifact on the same data, and how they compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from mbqc.cli.output import warn
from mbqc.cli.progress import show_progress
from mbqc.errors import DataError
from mbqc.ir.compare import sqnr
from mbqc.pipeline.data import check_input, join_targets, split_batch
from mbqc.runtime import Compiled
from mbqc.userfile import UserModel
from mbqc.widths import Bits

Outputs = tuple[Tensor, ...]
"""All outputs of a model, each over all batches."""


@dataclass(frozen=True)
class Found:
    """What was found on the data.

    Attributes:
        exact: outputs of the float model.
        by_width: those of the artifact.
        target: None unless every batch has one.
        no_target: why there is none, empty where there is one.
    """

    exact: Outputs
    by_width: dict[str, Outputs]
    target: Tensor | None
    no_target: str


def warn_of_another_model(net: nn.Module, compiled: Compiled, place: str) -> None:
    """Warns where the model of the file at `place` cannot be the one that was compiled."""
    parameters = sum(p.numel() for p in net.parameters())
    if parameters != compiled.manifest.parameters:
        made_from = f"the artifact was made from one of {compiled.manifest.parameters}"
        warn(f"{place} gives a model of {parameters} parameters, {made_from}")


def collect_outputs(net: nn.Module, compiled: Compiled, asked: Mapping[str, Bits], user: UserModel) -> Found:
    """Runs the float model and the artifact, at each of the widths in `asked`, on eval_data().

    Raises:
        ModelError: there is no eval_data(), or the model raises.
        DataError: a batch does not fit, there is none, or the artifact is of a model with other outputs.
    """
    data, examples = user.require_data("eval_data"), user.example_inputs()
    exact: list[Outputs] = []
    by_width: dict[str, list[Outputs]] = {name: [] for name in asked}
    targets: list[Tensor | None] = []
    with show_progress("evaluating", None) as advance, torch.no_grad():
        for index, batch in enumerate(data):
            where = f"eval_data(), batch {index}"
            inputs, target = split_batch(batch, len(examples), where)
            for given, example in zip(inputs, examples, strict=True):
                check_input(given, example, where)
            targets.append(target)
            exact.append(_run_float(net, inputs, user))
            for name, bits in asked.items():
                by_width[name].append(_as_tuple(compiled(*inputs, bits=bits)))
                _require_same_shapes(exact[-1], by_width[name][-1])
            advance()
    if not targets:
        raise DataError("evaluation data is empty", hint="eval_data() must give at least one batch")
    known = [target for target in targets if target is not None]
    joined = {name: _join(batches) for name, batches in by_width.items()}
    if len(known) == len(targets):
        return Found(_join(exact), joined, join_targets(known, "eval_data()"), "")
    lacking = next(index for index, target in enumerate(targets) if target is None)
    reason = f"batch {lacking} of the data has no target" if known else "the data has no targets"
    return Found(_join(exact), joined, None, reason)


def _join(batches: Sequence[Outputs]) -> Outputs:
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def _run_float(net: nn.Module, inputs: Outputs, user: UserModel) -> Outputs:
    try:
        return _as_tuple(net(*inputs))
    except (Exception, SystemExit) as error:
        raise user.failure("forward", error) from error


def _as_tuple(outputs: object) -> Outputs:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)  # type: ignore[return-value]


def _require_same_shapes(exact: Outputs, found: Outputs) -> None:
    of_model, of_artifact = ([tuple(part.shape) for part in parts] for parts in (exact, found))
    if of_model != of_artifact:
        raise DataError(
            f"the model gives outputs of shape {of_model}, the artifact {of_artifact}",
            hint="compile this model again",
        )


class Judge:
    """Compares outputs with the float model's and with the targets."""

    def __init__(self, user: UserModel, exact: Outputs, target: Tensor | None) -> None:
        self._user, self.exact, self._target = user, exact, target

    @cached_property
    def metric_name(self) -> str:
        """What the metric is, empty where there is none."""
        if self._target is None:
            return ""
        own = getattr(self._user.module, "metric", None)
        if own is not None:
            return (own.__doc__ or "metric() of the model file").strip().splitlines()[0].rstrip(".")
        return "top-1 accuracy in percent (the model file has no metric)" if self._are_labels(self._target) else ""

    def metric(self, outputs: Outputs) -> float | None:
        """The user's metric, or top-1 accuracy in percent; None without targets.

        Raises:
            ModelError: the user's metric raises, or gives no number.
        """
        if self._target is None or not self.metric_name:
            return None
        own = self._user.metric(outputs if len(outputs) > 1 else outputs[0], self._target)
        return own if own is not None else _percent(outputs[0].argmax(1) == self._target)

    def agreement(self, outputs: Outputs) -> float | None:
        """Percent of samples with the float model's top-1, None unless outputs are scores."""
        return _percent(outputs[0].argmax(1) == self.exact[0].argmax(1)) if self._are_scores else None

    def sqnr(self, outputs: Outputs) -> float:
        """Decibels of all outputs together."""
        return sqnr(*(torch.cat([part.flatten().double() for part in parts]) for parts in (self.exact, outputs)))

    @property
    def _are_scores(self) -> bool:
        return len(self.exact) == 1 and self.exact[0].dim() == 2 and self.exact[0].shape[1] > 1

    def _are_labels(self, target: Tensor) -> bool:
        whole = not target.is_floating_point() and target.dtype != torch.bool
        return self._are_scores and whole and target.shape == self.exact[0].shape[:1]


def _percent(hits: Tensor) -> float:
    return 100.0 * hits.double().mean().item()
