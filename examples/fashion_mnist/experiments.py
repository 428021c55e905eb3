"""The experiments as data: tables of rows, each row a pipeline text, or one for each width that it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

WIDTHS = range(8, 0, -1)
SERVED = range(8, 1, -1)
"""What one run is to serve; 1 bit needs training of its own."""

EPOCHS = 4
CORESET_EPOCHS = 6
LONG_EPOCHS = 30

SWITCHABLE = "bncorrect{moments=none,statistics=width,affine=width}"
TRANSITIONAL = "bncorrect{moments=none,statistics=pair,affine=pair}"

Column = Literal["clamped", "scoring", "selecting", "BatchNorm", "mixed"]


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: as the table shows it.
        serves: width to the pipeline that serves it; one pipeline for all, except where widths are trained apart.
    """

    name: str
    serves: Mapping[int, str]

    @property
    def runs(self) -> tuple[str, ...]:
        """The pipelines to run, each once."""
        return tuple(dict.fromkeys(self.serves.values()))


@dataclass(frozen=True)
class Table:
    """Methods side by side, trained with the same rate, and for as many epochs unless a row says otherwise.

    Attributes:
        name: on the command line.
        title: what is compared.
        columns: shown besides accuracy, steps and seconds.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...] = ()

    def row(self, name: str) -> Row:
        """The row of a name."""
        return next(row for row in self.rows if row.name == name)


def spec(name: str, **options: object) -> str:
    """A pass as text, `name{key=value,...}`."""
    body = ",".join(f"{key}={value}" for key, value in options.items())
    return f"{name}{{{body}}}" if body else name


def train(epochs: int = EPOCHS, **options: object) -> str:
    """The last pass, which judges only at the end."""
    return spec("train", epochs=epochs, evaluate=0, **options)


def passes(norms: str = "bncorrect", bits: str = "8:4:2", epochs: int = EPOCHS, **training: object) -> str:
    """`quant`, what is done about BatchNorm (nothing where empty), `train`."""
    return ",".join(filter(None, (spec("quant", bits=bits), norms, train(epochs, **training))))


def coreset(epochs: int, warmup: int = 1, keep: float = 0.2, **training: object) -> str:
    """A share of the data for each width, after some epochs of all of it."""
    return passes(epochs=epochs, keep=keep, coreset_warmup=warmup, **training)


def equal_steps(epochs: int) -> int:
    """Epochs of full data that make about as many steps as a coreset after one epoch."""
    return round(1 + 0.2 * (epochs - 1))


def one(name: str, pipeline: str) -> Row:
    """One run for all widths."""
    return Row(name, dict.fromkeys(WIDTHS, pipeline))


def apart(name: str, epochs: int) -> Row:
    """A training for each width, with a plain BatchNorm of its own."""
    return Row(name, {bits: passes("", bits=str(bits), epochs=epochs) for bits in SERVED})


def batch_norms(name: str, bits: str) -> Table:
    """Ways to share BatchNorm, trained at `bits`, judged at all widths."""

    def row(title: str, norms: str, **training: object) -> Row:
        return one(title, passes(norms, bits, **training))

    return Table(
        name,
        f"BatchNorm, trained at {bits.replace(':', ', ')} bits",
        (
            row("corrected, frozen", "bncorrect"),
            row("corrected, frozen, gradient through the moments", "bncorrect{gradient=through}"),
            row("switchable", SWITCHABLE, bn_freeze=0.0),
            row("switchable, frozen", SWITCHABLE),
            row("naive shared", "", bn_freeze=0.0),
            row("naive shared, frozen", ""),
            row("corrected", "bncorrect", bn_freeze=0.0),
            row("corrected, re-estimated pooled", "bncorrect", bn_freeze=0.0, reestimate="pooled"),
            row("corrected, re-estimated by width", "bncorrect", bn_freeze=0.0, reestimate="width"),
            row("naive shared, re-estimated by width", "", bn_freeze=0.0, reestimate="width"),
        ),
        ("BatchNorm",),
    )


def ladders() -> Table:
    """How lower widths derive from the stored code, with and without correction and training."""
    rows = []
    for trained in (True, False):
        for ladder, quant in (("round", "quant{bits=8:4:2}"), ("shift", "quant{bits=8:4:2,ladder=shift}")):
            for norms in ("bncorrect", ""):
                name = f"{ladder}, {'corrected' if norms else 'not corrected'}, {'' if trained else 'not '}trained"
                rows.append(one(name, ",".join(filter(None, (quant, norms, train() if trained else "")))))
    return Table("ladder", "Ladder: how a lower width derives from the stored code", tuple(rows))


def scales() -> Table:
    """How quantization scales are learned."""
    raw = {"scales": "raw", "scale_rate": 0.001}
    return Table(
        "scales",
        "Scales: what is learned, at which rate",
        (
            one("log, 2e-3", passes()),
            one("log, 2e-4", passes(scale_rate=0.0002)),
            one("log, 1e-2", passes(scale_rate=0.01)),
            one("raw, 1e-3", passes(**raw)),
            one("raw, 1e-4", passes(scales="raw", scale_rate=0.0001)),
            one("frozen", passes(scales="frozen")),
            *(one(f"raw, 1e-3, ALRS {kind}", passes(**raw, alrs=kind)) for kind in ("paper", "layer", "channel")),
        ),
        ("clamped",),
    )


def coresets(name: str, epochs: int, tdds_warmup: int, *more: Row) -> Table:
    """Full data against 20 % of it for each width, one epoch of full data before (more for TDDS, see its row)."""
    equal = equal_steps(epochs)
    sandwich = {"bits": ":".join(map(str, SERVED)), "widths": "sandwich"}  # of three widths it would be all of them
    tdds = coreset(epochs, tdds_warmup, coreset="tdds", selection="top")
    return Table(
        name,
        f"Coresets: 20 % of the data for each width, {epochs} epochs",
        (
            one("full data", passes(epochs=epochs)),
            one("random, fresh each epoch", coreset(epochs, coreset="random")),
            one(f"full data, as many steps ({equal} epochs)", passes(epochs=equal)),
            one("EL2N, stratified", coreset(epochs, coreset="el2n", selection="stratified")),
            one("EL2N, top", coreset(epochs, coreset="el2n", selection="top")),
            one(f"TDDS, top, {tdds_warmup} epochs of full data", tdds),
            one("sandwich of 8 to 2, full data", passes(epochs=epochs, **sandwich)),
            one("sandwich of 8 to 2, random fresh", coreset(epochs, coreset="random", **sandwich)),
            one(f"sandwich of 8 to 2, as many steps ({equal} epochs)", passes(epochs=equal, **sandwich)),
            *more,
        ),
        ("scoring", "selecting", "BatchNorm"),
    )


def switching() -> Table:
    """Widths that layers leave for others in training; the last column mixes widths in inference."""
    hasb = "hasb{bits=8:4:2}"

    def row(title: str, norms: str, **training: object) -> Row:
        return one(title, passes(f"{norms},{hasb}", **training))

    return Table(
        "switching",
        "Switching: layers at widths of their own, in training and (mixed) in inference",
        (
            row("corrected, frozen, no switching", "bncorrect"),
            row("corrected, frozen, uniform", "bncorrect", switch="uniform"),
            row("corrected, frozen, hasb", "bncorrect", switch="hasb"),
            row("switchable, no switching", SWITCHABLE, bn_freeze=0.0),
            row("switchable, hasb", SWITCHABLE, bn_freeze=0.0, switch="hasb"),
            row("transitional, hasb", TRANSITIONAL, bn_freeze=0.0, switch="hasb"),
        ),
        ("mixed",),
    )


def teachers() -> Table:
    """Distillation, when a step is made, and the first and last layer."""
    ends = passes().replace("bits=8:4:2", "bits=8:4:2,skip=conv:fc")
    return Table(
        "distill",
        "Distillation, stepping, ends of the network",
        (
            one("no distillation, step after each width, ends at 8 bits", passes()),
            one("distilled from the highest width", passes(distill="highest")),
            one("distilled from the float model", passes(distill="float")),
            one("one step for all widths", passes(step="accumulate")),
            one("ends in float", ends),
        ),
    )


def serving(name: str, epochs: int, *more: Row) -> Table:
    """What it costs to serve the widths 8 to 2."""
    equal = equal_steps(epochs)
    return Table(
        name,
        f"Cost of serving the widths 8 to 2, {epochs} epochs",
        (
            apart("seven separate trainings", epochs),
            one("one run, 8, 4, 2 bits", passes(epochs=epochs)),
            one("one run, 20 % of the data", coreset(epochs, coreset="random")),
            one("one run, 20 % of the data, no warm-up", coreset(epochs, 0, coreset="random")),
            one("one run, 28 % of the data, no warm-up", coreset(epochs, 0, 0.28, coreset="random")),
            one(f"one run, full data, as many steps ({equal} epochs)", passes(epochs=equal)),
            *more,
        ),
    )


TABLES = (
    batch_norms("bn", "8:4:2"),
    serving(
        "serving",
        EPOCHS,
        one("one run, full data, 1 epoch", passes(epochs=1)),
        one("one run, 8 and 2 bits", passes(bits="8:2")),
        one("one run, all seven widths, switchable", passes(SWITCHABLE, ":".join(map(str, SERVED)), bn_freeze=0.0)),
    ),
    coresets(
        "coresets",
        CORESET_EPOCHS,
        3,
        one("random, fresh each epoch, 3 epochs of full data", coreset(CORESET_EPOCHS, 3, coreset="random")),
        one(f"full data, {EPOCHS} epochs", passes()),
        one("entropy, stratified", coreset(CORESET_EPOCHS, coreset="entropy", selection="stratified")),
        one("forgetting, stratified, 3 epochs of full data", coreset(CORESET_EPOCHS, 3, coreset="forgetting")),
    ),
    batch_norms("bn_8642", "8:6:4:2"),
    ladders(),
    scales(),
    teachers(),
    switching(),
    serving(
        "serving_long",
        LONG_EPOCHS,
        one("one run, 8 and 2 bits, 10 epochs", passes(bits="8:2", epochs=10)),
        one("one run, 5 and 2 bits, 10 epochs", passes(bits="5:2", epochs=10)),
        one("one run, 5 and 2 bits, gradient through", passes("bncorrect{gradient=through}", "5:2", 10)),
        one("one run, 4 and 2 bits, 10 epochs", passes(bits="4:2", epochs=10)),
        one("one run, 2 bits, 20 epochs", passes(bits="2", epochs=20)),
    ),
    coresets("coresets_long", LONG_EPOCHS, tdds_warmup=10),
)
"""In the order in which they run: what decides most comes first."""


def table(name: str) -> Table:
    """The table of a name."""
    return next(each for each in TABLES if each.name == name)
