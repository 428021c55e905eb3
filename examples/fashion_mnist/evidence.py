"""The evidence for the training defaults: runs what is missing, makes tables and a plot of what is there.

    python examples/fashion_mnist/evidence.py plan                      # what is missing
    python examples/fashion_mnist/evidence.py run --tables bn,serving   # restartable: a finished run is kept
    python examples/fashion_mnist/evidence.py tables                    # RESULTS.md from results/*.json alone
    python examples/fashion_mnist/evidence.py plot                      # results/bn.png

`train_float.py` must have trained the float network of each seed before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import model
import torch
from experiments import TABLES, WIDTHS
from records import RESULTS, Record, load, save
from report import plot, report
from torch import Tensor, fx

from mbqc.api import compile_model, pipeline_of
from mbqc.files import write_atomically
from mbqc.ir.quantized import quantized_layers
from mbqc.passes.train import Train
from mbqc.pipeline import Context, Pipeline
from mbqc.pipeline.training import TrainingResult
from mbqc.runtime import make
from mbqc.widths import resolve

REPORT = Path(__file__).with_name("RESULTS.md")

ALONE = 0.97
"""Share of its time that a run has the processor, if nothing else runs on its core."""

MIXED = 16
"""Programs with a width of its own, 8, 4 or 2, for each layer that is not pinned."""


def measure(passes: str, seed: int, jobs: int = 1) -> Record:
    """One run on one thread: compiles, and judges the graph and the Program at all widths.

    Args:
        jobs: how many runs share the machine, for the record.

    Raises:
        FileNotFoundError: the data, or the float network of this seed, is missing.
        MbqcError: the pipeline cannot run.
    """
    torch.set_num_threads(1)
    network, batches = model.float_network(seed), model.eval_data()
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    context = Context(
        model.example_inputs(),
        model.calibration_data(),
        model.train_data(),
        model.loss,
        batches,
        model.metric,
        seed,
    )
    start, busy = time.perf_counter(), time.process_time()
    made = compile_model(network, pipeline_of(passes), context)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    compiled = make(made.program, made.manifest, "cpu")
    trained = made.report.training or _untrained(made.quantized, images, labels)
    with torch.no_grad():
        exact = model.metric(network(images), labels)
    return Record(
        passes=passes,
        pipeline=str(made.pipeline),
        seed=seed,
        exact=exact,
        before=trained.before,
        after=trained.after,
        graph=_lowered(trained, made.pipeline),
        program={bits: model.metric(compiled(images, bits=bits), labels) for bits in WIDTHS},
        pooled=trained.pooled,
        separate=trained.separate,
        clamped=_mean_by_width([epoch.clamped for epoch in trained.epochs]),
        steps=trained.epochs[-1].steps if trained.epochs else 0,
        seconds=trained.seconds | {"all": seconds},
        timed=busy >= ALONE * seconds,
        environment=_environment(jobs),
        mixed=mean(model.metric(compiled(images, bits=bits), labels) for bits in _mixed(compiled.layers)),
    )


def _mixed(layers: Mapping[str, int | None]) -> Iterator[dict[str, int]]:
    """The same draws for every run."""
    draw = random.Random("mixed")
    for _ in range(MIXED):
        yield {layer: draw.choice((8, 4, 2)) if pinned is None else pinned for layer, pinned in layers.items()}


def _untrained(graph: fx.GraphModule, images: Tensor, labels: Tensor) -> TrainingResult:
    """What is to be recorded of a graph that was not trained."""
    layers = quantized_layers(graph)
    with torch.no_grad():
        accuracy = {bits: model.metric(graph(images, resolve(bits, layers)), labels) for bits in WIDTHS}
    return TrainingResult((), None, before=accuracy, after=accuracy)


def _lowered(result: TrainingResult, pipeline: Pipeline) -> dict[int, float]:
    """Of the three that training judged, the accuracy of the graph that it gave on."""
    choice = next((item.reestimate for item in pipeline.passes if isinstance(item, Train)), "none")
    return {"none": result.after, "pooled": result.pooled, "width": result.separate}[choice]


def _mean_by_width(epochs: list[dict[int, float]]) -> dict[int, float]:
    return {bits: sum(epoch[bits] for epoch in epochs) / len(epochs) for bits in (epochs[0] if epochs else ())}


def _environment(jobs: int) -> dict[str, str]:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = {name: version(name) for name in ("mbqc", "torch")} | {"python": platform.python_version()}
    return versions | {"commit": _commit(), "processor": processor, "jobs": str(jobs)}


def _commit() -> str:
    """What `git describe` says of this folder; a tree with changes of its own ends in `-dirty`."""
    command = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def missing(tables: list[str], seeds: list[int], folder: Path = RESULTS) -> list[tuple[str, int]]:
    """Pipelines and seeds without a record, in the order of the tables; within a table all rows of a seed first."""
    chosen = [table for table in TABLES if table.name in tables]
    wanted = [(run, seed) for table in chosen for seed in seeds for row in table.rows for run in row.runs]
    return [run for run in dict.fromkeys(wanted) if load(*run, folder) is None]


def run(tables: list[str], seeds: list[int], jobs: int) -> int:
    """Runs what is missing, in `jobs` processes of their own; returns how many failed."""
    todo, failed = missing(tables, seeds), 0
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=start) as pool:
        futures = {pool.submit(measure, passes, seed, jobs): (passes, seed) for passes, seed in todo}
        for done, future in enumerate(as_completed(futures), 1):
            passes, seed = futures[future]
            if (error := future.exception()) is not None:
                failed += 1
                result = f"{type(error).__name__}: {error}"
            else:
                save(record := future.result())
                accuracy = "  ".join(f"{bits}: {record.program[bits]:.2f}" for bits in (8, 4, 3, 2))
                result = f"{accuracy}  {record.seconds['all']:.0f} s"
            print(f"[{done}/{len(todo)}] {passes}  seed {seed}  {result}", flush=True)
    return failed


def arguments() -> argparse.Namespace:
    """The command line."""
    names = ",".join(table.name for table in TABLES)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("plan", "run", "tables", "plot"))
    parser.add_argument("--tables", default=names, help=f"those of {names}; default all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; times then say less")
    given = parser.parse_args()
    given.tables, given.seeds = given.tables.split(","), [int(seed) for seed in given.seeds.split(",")]
    if unknown := set(given.tables) - set(names.split(",")):
        parser.error(f"there is no table {', '.join(sorted(unknown))}; there are {names}")
    return given


def main() -> None:
    """Does what the command says."""
    given = arguments()
    match given.command:
        case "plan":
            for passes, seed in missing(given.tables, given.seeds):
                print(f"{passes}  seed {seed}")
        case "run":
            sys.exit(1 if run(given.tables, given.seeds, given.jobs) else 0)
        case "tables":
            write_atomically(REPORT, report(given.seeds).encode())
            print(f"wrote {REPORT}")
        case "plot":
            print(f"wrote {plot('bn', given.seeds)}")


if __name__ == "__main__":
    main()
