"""How long a training step takes: float, quantized at 8, 4 and 2 bits, and other quantization-aware training.

    OMP_NUM_THREADS=1 taskset -c 1 python examples/step_time.py [rounds]

ResNet-20 for CIFAR-10, random weights, batch 128, one thread, channels last, Adam (fused). One step is zero_grad,
forward, loss, backward and update; ours is the one of the `train` pass, which also checks loss and gradients and has an
optimizer of its own for scales. All steps are timed in turns in one process, since a machine's speed drifts; ratios are
to the float step. PyTorch FX, PT2E (torchao) and Brevitas train 8 bits; what is not installed is named.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from mbqc.frontend.trace import trace
from mbqc.fused.kernels import kernels_for
from mbqc.lookup import find_pass
from mbqc.passes.train import Train
from mbqc.passes.train.feeds import Fed
from mbqc.passes.train.loop import Stepper
from mbqc.passes.train.parallel.ranks import Ranks
from mbqc.passes.train.task import Task
from mbqc.pipeline import Context, Pipeline

sys.path.insert(0, str(Path(__file__).parent / "resnet20_cifar10"))
from model import ResNet20

BATCH, BITS = 128, (8, 4, 2)
ROUNDS = 1000
"""Of a training whose first is timed again and again: its learning rate is the highest."""

Step = Callable[[], None]
Forward = Callable[[Tensor], Tensor]


def network() -> nn.Module:
    """ResNet-20 with the same random weights each time."""
    torch.manual_seed(0)
    return ResNet20().eval()


def step_of(forward: Forward, module: nn.Module, x: Tensor, labels: Tensor) -> Step:
    """One step of `module`, whose parameters `forward` reads."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(x), labels).backward()
        optimizer.step()

    return step


def ours(x: Tensor, labels: Tensor) -> dict[str, Step]:
    """The float step and one a width."""
    model = network().train().to(memory_format=torch.channels_last)
    steps = {"float": step_of(model, model, x, labels)}
    pipeline, context = Pipeline.parse("normalize,quant,bncorrect", find_pass), Context((x[:1],), calibration=[x])
    graph = pipeline.run(trace(network(), (x[:1],)), context).train().to(memory_format=torch.channels_last)
    for bits in BITS:
        stepper = Stepper(Task(graph, Train(rate=1e-4), (bits,), context, Ranks()), rounds=ROUNDS)
        batch = {bits: Fed((x,), labels, None)}
        steps[f"mbqc, {bits} bits"] = lambda stepper=stepper, batch=batch: stepper.round(batch, 0, 0, _nobody)
    return steps


def _nobody(bits: int, fed: Fed, output: object, loss: float) -> None:
    """Watches."""


def fx_step(x: Tensor, labels: Tensor) -> Step:
    """PyTorch's own, graph mode."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    model = prepare_qat_fx(network().train(), get_default_qat_qconfig_mapping("x86"), (x,))
    model = model.to(memory_format=torch.channels_last)
    return step_of(model, model, x, labels)


def pt2e_step(x: Tensor, labels: Tensor) -> Step:
    """torchao's, of an exported graph."""
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=True))
    exported = torch.export.export(network().train(), (x,), strict=True).module()
    model = move_exported_model_to_train(prepare_qat_pt2e(exported, quantizer))
    model = model.to(memory_format=torch.channels_last)
    return step_of(model, model, x, labels)


def brevitas_step(x: Tensor, labels: Tensor) -> Step:
    """Its default quantization of a graph, past the first steps, in which it collects statistics."""
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    model = quantize(preprocess_for_quantize(network(), equalize_iters=0, merge_bn=False))
    model = model.to(memory_format=torch.channels_last)
    with torch.no_grad(), calibration_mode(model):
        model(x)
    model.train()
    return step_of(model, model, x, labels)


def peers(x: Tensor, labels: Tensor) -> tuple[dict[str, Step], list[str]]:
    """The steps of those that are installed, and what is wrong with the others."""
    steps, missing = {}, []
    for name, make in {"PyTorch FX": fx_step, "PT2E (torchao)": pt2e_step, "Brevitas": brevitas_step}.items():
        try:
            steps[name] = make(x, labels)
            steps[name]()
        except Exception as error:  # of packages that are not ours
            steps.pop(name, None)
            missing.append(f"{name} is not measured: {type(error).__name__}: {str(error).splitlines()[0]}")
    return steps, missing


def main(rounds: int = 20) -> None:
    """Prints the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 32, 32, generator=random).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,), generator=random)
    others, missing = peers(x, labels)
    steps = ours(x, labels) | others
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in track(range(rounds + 2), "steps", transient=True):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 2:  # warm
                times[name].append(1e3 * (time.perf_counter() - start))
    table = Table(title=f"training step, ms, {rounds} rounds")
    for heading in ("", "median", "ratio", "5th percentile", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    marks = {name: torch.tensor(found).quantile(torch.tensor([0.5, 0.05])).tolist() for name, found in times.items()}
    for name, (median, low) in marks.items():
        ratios = (f"{value / reference:.2f}" for value, reference in zip((median, low), marks["float"], strict=True))
        table.add_row(name, f"{median:.1f}", next(ratios), f"{low:.1f}", next(ratios))
    console = Console()
    console.print(table)
    if kernels_for(x) is None:
        missing.append("mbqc runs in torch alone: its training kernels were not built")
    for line in missing:
        console.print(line, highlight=False)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
