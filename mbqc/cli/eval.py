"""`mbqc eval`: how good an artifact is at each width, beside the float model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from mbqc.cli.options import (
    WIDTHS_HELP,
    ArtifactArgument,
    BackendOption,
    DataOption,
    JsonOption,
    ModelArgument,
    ThreadsOption,
    parse_widths,
    set_data_folder,
)
from mbqc.cli.output import Answer, Column, format_db, format_metric, print_table


@dataclass(frozen=True)
class Quality:
    """One line of the table.

    Attributes:
        bits: the width, the file of widths, or `float`.
        metric: None without targets, or where there is no metric.
        agreement: percent of samples whose largest output is the float model's; None unless outputs are scores.
        sqnr: decibels of the outputs against the float model's.
    """

    bits: str
    metric: float | None
    agreement: float | None
    sqnr: float | None


@dataclass(frozen=True)
class Evaluation(Answer):
    """How good an artifact is.

    Attributes:
        metric: what the metric is, empty where there is none.
        own_metric: whether it is the model file's, not top-1 accuracy in percent.
        no_metric: why there is none, empty where there is one.
    """

    samples: int
    metric: str
    own_metric: bool
    no_metric: str
    rows: tuple[Quality, ...]

    def show(self) -> None:
        """Prints the table."""
        columns = [Column("bits", [row.bits for row in self.rows], left=True)]
        if self.metric:
            columns.append(
                Column("metric", [format_metric(row.metric, percent=not self.own_metric) for row in self.rows])
            )
        if any(row.agreement is not None for row in self.rows):
            columns.append(Column("same top-1 %", [format_metric(row.agreement, percent=True) for row in self.rows]))
        print_table([*columns, Column("SQNR dB", [format_db(row.sqnr) for row in self.rows])])
        print(f"  {self.samples} samples; agreement and SQNR are against the float model.")
        print(f"  metric: {self.metric}." if self.metric else f"  no metric: {self.no_metric}.")


def evaluate(
    artifact: ArtifactArgument,
    model: ModelArgument,
    bits: Annotated[str, typer.Option(metavar="WIDTHS", help=WIDTHS_HELP)] = "all",
    threads: ThreadsOption = 1,
    backend: BackendOption = "cpu",
    data: DataOption = None,
    json: JsonOption = False,
) -> Evaluation:
    """Compare an artifact with its float model.

    On eval_data() of the model file, at each width. The file's metric(output, target) gets all outputs and all targets
    at once. Without one, outputs [N, classes] are judged by top-1 accuracy.
    """
    from mbqc.cli.quality import Judge, collect_outputs, warn_of_another_model
    from mbqc.runtime import load
    from mbqc.userfile import load_user_model

    asked = parse_widths(bits)
    compiled = load(artifact, backend, threads=threads)
    for widths in asked.values():
        compiled.widths(widths)  # refuses what does not fit before the long work
    set_data_folder(data)
    user = load_user_model(model)
    net = user.model().eval()
    warn_of_another_model(net, compiled, model)
    found = collect_outputs(net, compiled, asked, user)
    judge = Judge(user, found.exact, found.target)
    rows = [
        Quality("float", judge.metric(found.exact), None, None),
        *(Quality(b, judge.metric(y), judge.agreement(y), judge.sqnr(y)) for b, y in found.by_width.items()),
    ]
    reason = found.no_target or "the data is no classification; define metric(output, target)"
    no_metric = "" if judge.metric_name else reason
    return Evaluation(len(found.exact[0]), judge.metric_name, user.has_metric, no_metric, tuple(rows))
