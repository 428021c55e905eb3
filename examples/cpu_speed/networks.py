"""Whole networks through the public call: against other runtimes, on two threads, at lower widths."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rows import Row, summary

import mbqc
from mbqc.cli.against import prepare, subject_of
from mbqc.cli.timing import in_turn, timed
from mbqc.program.operations import Conv
from mbqc.runtime import Compiled
from mbqc.userfile import UserModel, load_user_model

EXAMPLES = Path(__file__).parent.parent
LOWER_BITS = (4, 2)


@dataclass(frozen=True)
class Network:
    """A model file, and what its speed against the better peer should be."""

    name: str
    file: Path
    passes: str
    owed: float
    aimed: float


NETWORKS = (
    Network("MobileNetV2", EXAMPLES / "mobilenet_v2/model.py", "quant,bncorrect", 1.35, 1.75),
    Network("ResNet-20", EXAMPLES / "resnet20_cifar10/model.py", "quant,bncorrect", 1.3, 1.5),
    Network("ResNet-18", EXAMPLES / "cpu_speed/resnet18.py", "quant{calibration=minmax},bncorrect", 0.95, 1.03),
)


@dataclass(frozen=True)
class Loaded:
    """A network as compiled, in a file, so that it can be loaded with more threads."""

    network: Network
    user: UserModel
    artifact: Path
    compiled: Compiled
    x: torch.Tensor


def load(network: Network, folder: Path) -> Loaded:
    """Compiles a network into `folder`, or takes the artifact that is there."""
    artifact = folder / f"{network.name}.mbqc"
    user = load_user_model(str(network.file))
    if not artifact.exists():
        print(f"compiling {network.name}")
        calibration = user.data("calibration_data")
        mbqc.compile(user.model(), user.example_inputs(), network.passes, calibration=calibration).save(artifact)
    compiled = mbqc.load(artifact)
    (x,) = user.example_inputs()
    return Loaded(network, user, artifact, compiled, x[:1].contiguous())


def rows(folder: Path, repeats: int) -> Iterator[Row]:
    """All rows of all networks whose data are there."""
    for network in NETWORKS:
        try:
            loaded = load(network, folder)
        except mbqc.MbqcError as error:
            print(f"{network.name} is left out: {error}")
            continue
        yield from _against_peers(loaded, repeats)
        yield from _widths(loaded, repeats)
        if network.name == "MobileNetV2":
            yield _depthwise(loaded, repeats)
        if network.name == "ResNet-20":
            yield _overhead(loaded, 10 * repeats)
        if network.name == "ResNet-18":
            yield _two_threads(loaded, repeats)


def _against_peers(loaded: Loaded, repeats: int) -> Iterator[Row]:
    subject = subject_of(loaded.user, 1, 1)
    runners, missing = prepare(("onnxruntime", "openvino"), subject)
    for reason in missing.values():
        print(reason)
    calls = {name: timed(bind((loaded.x,))) for name, bind in runners.items() if "int8" in name}
    if not calls:
        return
    calls["own"] = timed(lambda: loaded.compiled(loaded.x, bits=8))
    runs = in_turn(f"{loaded.network.name} and peers", calls, repeats)
    times = {name: summary(found) for name, found in runs.items()}
    own = times.pop("own")
    best = min(times, key=lambda name: times[name][0])
    note = ", ".join(f"{name} {median:.3f} ms" for name, (median, _) in times.items())
    ratios = [min(found[i] for found in times.values()) / own[i] for i in range(2)]
    goals = loaded.network.owed, loaded.network.aimed
    yield Row(f"{loaded.network.name} / {best}", *ratios, "x", *goals, f"own {own[0]:.3f} ms, {note}")


def _widths(loaded: Loaded, repeats: int) -> Iterator[Row]:
    """How much slower lower widths are: the network, and its slowest layer among those that take 1 % of its time."""
    executable, operations = loaded.compiled.executable, loaded.compiled.program.listing.operations
    calls: dict[str, Callable[[], tuple[float, ...]]] = {}
    for bits in (8, *LOWER_BITS):
        widths = loaded.compiled.widths(bits)
        calls[str(bits)] = lambda w=widths: executable.profile([loaded.x], w)
    found = in_turn(f"{loaded.network.name} by width", calls, repeats)
    columns = {bits: [summary(times) for times in zip(*runs, strict=True)] for bits, runs in found.items()}
    totals = {bits: summary([sum(run) for run in runs]) for bits, runs in found.items()}
    for bits in map(str, LOWER_BITS):
        losses = [100 * (totals[bits][i] / totals["8"][i] - 1) for i in range(2)]
        yield Row(f"{loaded.network.name} at {bits} bits", *losses, "%", 3, 1, "slower than at 8 bits")
        layers = [
            (columns[bits][i][0] / columns["8"][i][0], columns[bits][i][1] / columns["8"][i][1], op.output)
            for i, op in enumerate(operations)
            if hasattr(op, "weight") and columns["8"][i][0] > 0.01 * totals["8"][0]
        ]
        median, low, name = max(layers)
        losses = [100 * (median - 1), 100 * (low - 1)]
        yield Row(f"  its slowest layer at {bits} bits", *losses, "%", 5, 3, name)


def _depthwise(loaded: Loaded, repeats: int) -> Row:
    operations = loaded.compiled.program.listing.operations
    chosen = [i for i, op in enumerate(operations) if isinstance(op, Conv) and op.groups > 1]
    widths = loaded.compiled.widths(8)
    call = {"own": lambda: loaded.compiled.executable.profile([loaded.x], widths)}
    runs = in_turn("depthwise layers", call, repeats)["own"]
    found = summary([1e6 * sum(run[i] for i in chosen) for run in runs])
    return Row(f"MobileNetV2's {len(chosen)} depthwise layers", *found, "us", 220, 134)


def _overhead(loaded: Loaded, repeats: int) -> Row:
    """The public call less its kernels."""
    compiled, widths = loaded.compiled, loaded.compiled.widths(8)
    calls: dict[str, Callable[[], float]] = {
        "call": timed(lambda: compiled(loaded.x, bits=8)),
        "kernels": lambda: 1e3 * sum(compiled.executable.profile([loaded.x], widths)),
    }
    times = {name: summary(found) for name, found in in_turn("overhead", calls, repeats).items()}
    beyond = [1e3 * (times["call"][i] - times["kernels"][i]) for i in range(2)]
    return Row("public call beyond the kernels", *beyond, "us", 15, 5, "a tensor, 22 layers")


def _two_threads(loaded: Loaded, repeats: int) -> Row:
    """Needs both cores: the caller's affinity is widened meanwhile, where the system lets it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        both = mbqc.load(loaded.artifact, threads=2)
        calls = {"one": timed(lambda: loaded.compiled(loaded.x, bits=8)), "two": timed(lambda: both(loaded.x, bits=8))}
        times = {name: summary(found) for name, found in in_turn("two threads", calls, repeats).items()}
    finally:
        os.sched_setaffinity(0, before)
    ratios = [times["one"][i] / times["two"][i] for i in range(2)]
    return Row("ResNet-18 on two threads", *ratios, "x", 1.8, 1.9, f"{times['two'][0]:.3f} ms")
