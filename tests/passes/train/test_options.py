"""Options that make no sense are refused before anything runs, each with one message that says why."""

from __future__ import annotations

import pytest

from mbqc.errors import PassError, PipelineError
from mbqc.lookup import find_pass
from mbqc.passes.train import Train
from mbqc.pipeline import Pipeline
from tests.passes.train.small import context, quantized, run, trained

WRONG = {
    "epochs=0": "epochs=0 must be at least 1",
    "epochs=-1": "epochs=-1 must be at least 1",
    "epochs=1.5": "'1.5' is not a value of type int",
    "batch=0": "batch=0 must be at least 1",
    "checkpoint=0": "checkpoint=0 must be at least 1",
    "rate=0": "rate=0.0 must be positive",
    "rate=-1": "rate=-1.0 must be positive",
    "rate=nan": "rate=nan is no finite number",
    "rate=inf": "rate=inf is no finite number",
    "scale_rate=0": "scale_rate=0.0 must be positive",
    "weight_decay=-0.1": "weight_decay=-0.1 must not be negative",
    "weight_decay=nan": "weight_decay=nan is no finite number",
    "clip=-1": "clip=-1.0 must not be negative",
    "clip=nan": "clip=nan is no finite number",
    "warmup=1.1": "warmup=1.1 must lie in [0, 1]",
    "warmup=nan": "warmup=nan must lie in [0, 1]",
    "label_smoothing=2": "label_smoothing=2.0 must lie in [0, 1]",
    "bn_freeze=-0.1": "bn_freeze=-0.1 must lie in [0, 1]",
    "switch_most=2,switch=uniform": "switch_most=2.0 must lie in [0, 1]",
    "evaluate=-1": "evaluate=-1 must not be negative",
    "bits=9": "bits=9 must be different widths from 1 to 8",
    "bits=8:0": "bits=8:0 must be different widths from 1 to 8",
    "bits=4:4": "bits=4:4 must be different widths from 1 to 8",
    "schedule=linear": "schedule",
    "precision=float16": "precision",
    "epoch=3": "there is no option 'epoch'",
    "keep=0": "keep=0.0 must lie in (0, 1]",
    "keep=1.5": "keep=1.5 must lie in (0, 1]",
    "keep=0.5": "keep does nothing without coreset",
    "selection=top": "selection does nothing without coreset",
    "resample=1": "resample does nothing without coreset",
    "coreset_warmup=2": "coreset_warmup does nothing without coreset",
    "switch_most=0.3": "switch_most does nothing without switch",
    "scales=frozen,alrs=paper": "alrs sets rates of scales, which scales=frozen keeps",
    "alrs=layer,step=accumulate": "alrs has a rate for each width, but step=accumulate makes one step for all",
    "coreset=el2n,distill=highest": "distill=highest compares widths on one batch",
    "coreset=el2n,resample=-1": "resample=-1 must not be negative",
    "coreset=el2n,coreset_warmup=0": "coreset_warmup=0 must be at least 1 with coreset=el2n",
    "coreset=el2n,coreset_warmup=3": "coreset_warmup=3 must be less than epochs=3",
    "coreset=el2n,epochs=1": "coreset_warmup=1 must be less than epochs=1",
    "coreset=tdds": "coreset_warmup=1 must be at least 3 with coreset=tdds",
    "coreset=random,selection=top": "selection does nothing with coreset=random\n  try: coreset=el2n, or leave",
    "coreset=random,resample=1": "resample does nothing with coreset=random\n  try: coreset=el2n, or leave",
    "coreset=random,epochs=1": "coreset_warmup=1 must be less than epochs=1",
    "coreset=el2n,selection=balanced": "'balanced' is not a value of type top|stratified",
}


@pytest.mark.parametrize("options", WRONG)
def test_nonsense_is_refused(options: str) -> None:
    with pytest.raises(PipelineError) as caught:
        Pipeline.parse(f"train{{{options}}}", find_pass)
    assert WRONG[options] in str(caught.value)
    assert "train" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        "bn_freeze=0,warmup=0",
        "bn_freeze=1,warmup=1",
        "coreset=random",
        "coreset=random,coreset_warmup=0,epochs=1",
        "coreset=tdds,coreset_warmup=3,epochs=4",
        "distill=none,switch=none,reestimate=none,coreset=none",
        "keep=0.2",  # the default, spelled out
    ],
)
def test_corners_are_allowed(options: str) -> None:
    Pipeline.parse(f"train{{{options}}}", find_pass)


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("train", "train needs 'quantized'"),
        ("normalize,train,quant", "train needs 'quantized'.*which quant sets only later"),
        ("normalize,quant,train{switch=hasb}", "train needs 'sensitivity'"),
        ("normalize,quant,hasb,train,train{switch=hasb}", "'sensitivity'.*which train cleared; train appears twice"),
        ("normalize,quant,train,train", "train appears twice"),
    ],
)
def test_pipelines_that_cannot_run_are_refused_before_anything_does(passes: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(passes, find_pass).check()


def test_switching_by_hasb_needs_hasb_and_other_switching_does_not() -> None:
    assert [p.name for p in Train(switch="hasb").requires] == ["quantized", "sensitivity"]
    assert [p.name for p in Train(switch="uniform").requires] == ["quantized"]


@pytest.mark.parametrize(
    ("passes", "options", "message"),
    [
        ("quant", "bits=6", r"no activation scales for 6 bits\n.*quant\{bits=8:6:4:2\}"),
        ("quant{bits=8}", "widths=sandwich", r"widths=sandwich needs at least 2 widths, not only 8 bits"),
        ("quant", "bits=4,distill=highest", r"distill=highest needs at least 2 widths, not only 4 bits"),
        ("quant,hasb{probes=2,bits=8:3}", "switch=hasb", r"would switch to 3 bits, which are not trained\n.*8:4:2"),
    ],
)
def test_options_that_do_not_fit_the_graph(passes: str, options: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        trained(f"epochs=1,{options}", passes=f"normalize,{passes}")


def test_training_clears_what_the_old_weights_were_worth() -> None:
    graph = run("train{epochs=1,switch=hasb}", quantized("normalize,quant,hasb{probes=2},bncorrect"), context())
    assert "sensitivity" not in graph.meta["properties"]
    with pytest.raises(PipelineError, match="'sensitivity'"):
        run("train{switch=hasb}", graph, context())
