"""What `mbqc compile` says of training: the metric by width before and after, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mbqc.cli.output import Column, format_metric, print_facts, print_table

if TYPE_CHECKING:
    from mbqc.pipeline import Context
    from mbqc.pipeline.training import TrainingResult
    from mbqc.runtime import Compiled


@dataclass(frozen=True)
class TrainedWidth:
    """Metric at one width: of the quantized graph before and after training, and of the Program on the backend.

    Attributes:
        pooled, separate: after re-estimating BatchNorm over the trained widths, or for each; None where not asked for.
    """

    bits: int
    trained: bool
    before: float
    after: float
    pooled: float | None
    separate: float | None
    program: float


@dataclass(frozen=True)
class Training:
    """A training.

    Attributes:
        exact: metric of the float model, None without eval_data().
        own_metric: whether the metric is the model file's, not top-1 accuracy in percent.
        epochs, steps: how many; a step is one width on one batch.
        seconds: by part.
        folder: of checkpoints, history and curves.
    """

    exact: float | None
    widths: tuple[TrainedWidth, ...]
    own_metric: bool
    epochs: int
    steps: int
    seconds: dict[str, float]
    folder: str

    def show(self) -> None:
        """Prints the table and where the time went."""
        if self.widths:
            self._show_widths()
        times = ", ".join(f"{part} {seconds:.1f}s" for part, seconds in self.seconds.items())
        print_facts(
            [
                ("training", f"{self.epochs} epochs, {self.steps} steps: {times}"),
                ("kept in", self.folder),
            ]
        )
        print()

    def _show_widths(self) -> None:
        columns = [
            Column("bits", [f"{row.bits}{'' if row.trained else ' untrained'}" for row in self.widths], left=True)
        ]
        titles = {"before": "before", "after": "trained", "pooled": "pooled BN", "separate": "own BN"}
        for name, title in {**titles, "program": "Program"}.items():
            values = [getattr(row, name) for row in self.widths]
            if any(value is not None for value in values):
                columns.append(Column(title, [format_metric(value, percent=not self.own_metric) for value in values]))
        print_table(columns)
        exact = f"float {format_metric(self.exact, percent=not self.own_metric)}; " if self.exact is not None else ""
        print(f"  metric on eval_data(): {exact}Program is what the artifact runs.\n")


def describe_training(result: TrainingResult, compiled: Compiled, context: Context) -> Training:
    """The training's result beside what the compiled model makes of the evaluation data."""
    programs = _program_metrics(compiled, context) if result.after else {}
    widths = tuple(
        TrainedWidth(
            bits,
            bits in result.trained,
            result.before[bits],
            result.after[bits],
            result.pooled.get(bits),
            result.separate.get(bits),
            programs[bits],
        )
        for bits in sorted(result.after, reverse=True)
    )
    return Training(
        exact=result.exact,
        widths=widths,
        own_metric=context.metric is not None,
        epochs=len(result.epochs),
        steps=result.epochs[-1].steps,
        seconds={part: round(seconds, 3) for part, seconds in result.seconds.items()},
        folder=str(context.folder or ""),
    )


def _program_metrics(compiled: Compiled, context: Context) -> dict[int, float]:
    from mbqc.numerics import ALL_BITS
    from mbqc.pipeline.data import join_targets
    from mbqc.pipeline.objective import join, metric_of

    assert context.evaluation is not None, "the graph was judged on it"
    outputs: dict[int, list[object]] = {bits: [] for bits in ALL_BITS}
    targets = []
    with context.progress("judging the Program", None) as advance:
        for inputs, target in context.checked(context.evaluation, "evaluation data"):
            assert target is not None, "the graph was judged by it"
            targets.append(target)
            for bits in ALL_BITS:
                outputs[bits].append(compiled(*inputs, bits=bits))
            advance()
    metric = metric_of(context.metric)
    joined = join_targets(targets, "evaluation data")
    return {bits: metric(join(found), joined) for bits, found in outputs.items()}
