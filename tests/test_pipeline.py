"""Pipelines: their text, the orders they refuse, and what happens around each pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import fx

from mbqc.errors import DataError, PassError, PipelineError, UsageError, VerifyError
from mbqc.ir.parse import parse_graph
from mbqc.ir.quantized import layer_nodes
from mbqc.ir.text import graph_tensors, print_graph
from mbqc.lookup import find_pass, pass_table
from mbqc.pipeline import Context, Pass, Pipeline, Property, Report
from mbqc.pipeline.instruments import Compare, Dump, Timing, Verify
from mbqc.pipeline.pipeline import properties_of
from mbqc.program.operations import Program
from mbqc.program.text import print_program
from mbqc.properties import ALL, QUANTIZED, SENSITIVITY
from tests import zoo

MODEL = "conv_net"


def parse(text: str) -> Pipeline:
    return Pipeline.parse(text, find_pass)


# Text


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of an option's type; what the pass itself refuses is drawn again."""
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple:
        items = st.integers(1, 8) if get_args(hint)[0] is int else values(get_args(hint)[0])
        return st.lists(items, max_size=4, unique=True).map(tuple)
    scalars = {
        bool: st.booleans(),
        int: st.integers(1, 10**6),
        float: st.floats(0, 1, exclude_min=True) | st.just(1e-05),
        str: st.text(max_size=8),
    }
    if hint in scalars:
        return scalars[hint]
    return st.one_of([st.none() if option is type(None) else values(option) for option in get_args(hint)])


@st.composite
def instances(draw: st.DrawFn, name: str) -> Pass:
    """A pass of mbqc with random options."""
    cls = find_pass(name)
    hints = get_type_hints(cls)
    options = {f.name: draw(values(hints[f.name])) for f in dataclasses.fields(cls) if draw(st.booleans())}
    try:
        return cls(**options)
    except PipelineError:
        assume(False)
        raise


@pytest.mark.parametrize("name", pass_table())
def test_every_pass_comes_back_from_its_text(name: str) -> None:
    @given(st.lists(instances(name), min_size=1, max_size=3))
    def law(passes: list[Pass]) -> None:
        pipeline = Pipeline(tuple(passes))
        assert str(parse(str(pipeline))) == str(pipeline)

    law()


def test_a_pass_is_printed_without_the_options_that_it_has_anyway() -> None:
    assert str(parse(" quant{ladder=round, bits=8:4} , bncorrect{moments=both} ")) == "quant{bits=8:4},bncorrect"


# Orders, with passes that count their runs


@dataclass(frozen=True)
class Counting(Pass):
    """Does nothing, and remembers how often."""

    runs: ClassVar[list[str]] = []
    name: ClassVar[str] = "counting"

    def run(self, graph: fx.GraphModule, context: Context) -> fx.GraphModule:
        self.runs.append(self.name)
        return graph


@dataclass(frozen=True)
class Retrain(Counting):
    """As training will: what was known about the loss is known no longer."""

    name: ClassVar[str] = "retrain"
    clears: ClassVar[tuple[Property, ...]] = (SENSITIVITY,)


@dataclass(frozen=True)
class Search(Counting):
    """Needs what `hasb` finds out."""

    name: ClassVar[str] = "search"
    requires: ClassVar[tuple[Property, ...]] = (QUANTIZED, SENSITIVITY)


def ready(*passes: str | Pass) -> Pipeline:
    return Pipeline(tuple(parse(item).passes[0] if isinstance(item, str) else item for item in passes))


@pytest.mark.parametrize(
    ("passes", "reasons"),
    [
        (["quant"], ["quant needs 'canonical'", "which no pass before it sets"]),
        (["bncorrect", "normalize", "quant"], ["bncorrect needs 'quantized'", "which quant sets only later"]),
        (["normalize", "quant", "quant"], ["quant needs 'canonical'", "which quant cleared", "quant appears twice"]),
        (["normalize", "quant", "hasb", Retrain(), Search()], ["search needs 'sensitivity'", "which retrain cleared"]),
        (["normalize", Search(), "lower"], ["search needs 'quantized'", "search needs 'sensitivity'", "lower needs"]),
    ],
)
def test_an_impossible_order_is_refused_with_all_its_reasons_before_anything_runs(
    passes: list[str | Pass], reasons: list[str]
) -> None:
    Counting.runs.clear()
    pipeline = ready(Counting(), *passes)
    with pytest.raises(PipelineError) as caught:
        pipeline.run(zoo.traced(MODEL), zoo.context(MODEL))
    assert Counting.runs == []
    assert caught.value.where == f"pipeline {pipeline}"
    for reason in reasons:
        assert reason in caught.value.message
    assert len(caught.value.message.split("; ")) == len([r for r in reasons if "which" not in r])


def test_what_was_cleared_may_be_set_again() -> None:
    with pytest.raises(PipelineError, match="which retrain cleared"):
        ready(Retrain(), Search()).check(frozenset({"quantized", "sensitivity"}))
    ready(Retrain(), "hasb", Search()).check(frozenset({"quantized", "sensitivity"}))


def test_a_graph_holds_exactly_what_passes_set_and_none_cleared() -> None:
    held = [properties_of(zoo.traced(MODEL))]
    graph = zoo.traced(MODEL)
    for item in ["normalize", "quant", "bncorrect", "hasb", Retrain(), Counting()]:
        result = ready(item).run(graph, zoo.context(MODEL), [Verify(ALL)])
        assert isinstance(result, fx.GraphModule)
        graph = result
        held.append(properties_of(graph))
    expected: list[set[str]] = [set(), {"canonical"}, {"quantized"}, {"quantized", "corrected"}]
    expected += [{"quantized", "corrected", "sensitivity"}, {"quantized", "corrected"}, {"quantized", "corrected"}]
    assert held == expected


def test_a_later_run_starts_from_what_the_graph_already_holds() -> None:
    quantized = zoo.graph(MODEL)
    assert isinstance(parse("lower").run(quantized, zoo.context(MODEL)), Program)
    with pytest.raises(PipelineError, match="quant needs 'canonical'"):
        parse("quant").run(quantized, zoo.context(MODEL))


def test_nothing_runs_after_the_program_is_made() -> None:
    with pytest.raises(PipelineError, match="counting follows"):
        ready("normalize", "quant", "lower", Counting()).run(zoo.traced(MODEL), zoo.context(MODEL))


# Running


def test_the_graph_that_is_given_is_never_changed() -> None:
    graph = zoo.traced(MODEL)
    text, tensors = print_graph(graph), {name: t.clone() for name, t in graph_tensors(graph).items()}
    requires_grad = [p.requires_grad for p in graph.parameters()]
    parse("normalize,quant,bncorrect{statistics=width},hasb{probes=2},lower").run(graph, zoo.context(MODEL))
    assert print_graph(graph) == text
    assert all(torch.equal(t, tensors[name]) for name, t in graph_tensors(graph).items())
    assert [p.requires_grad for p in graph.parameters()] == requires_grad


@dataclass(frozen=True)
class Failing(Pass):
    """Fails at a node, or at none."""

    node: str | None
    name: ClassVar[str] = "failing"

    def run(self, graph: fx.GraphModule, context: Context) -> fx.GraphModule:
        raise PassError("it cannot be done", where=self.node)


@pytest.mark.parametrize(("node", "where"), [(None, "pass failing"), ("node x", "pass failing, node x")])
def test_a_pass_that_fails_is_named(node: str | None, where: str) -> None:
    with pytest.raises(PassError, match="it cannot be done") as caught:
        Pipeline((Failing(node),)).run(zoo.traced(MODEL), zoo.context(MODEL))
    assert caught.value.where == where


BROKEN_PASS = """
from dataclasses import dataclass
from typing import ClassVar
from mbqc.pipeline import Pass

@dataclass(frozen=True)
class Broken(Pass):
    name: ClassVar[str] = "broken"

    def run(self, graph, context):
        BODY
"""


@pytest.mark.parametrize(
    ("body", "message", "where"),
    [
        (
            "graph.get_submodule('8').weight.quantile(7)",
            r"raised RuntimeError: quantile\(\)",
            "pass broken ({file}:11)",
        ),
        ("raise SystemExit", "raised SystemExit", "pass broken ({file}:11)"),
        ("graph.graph.lint()", "returned an object of type NoneType, expected the graph", "pass broken"),
    ],
)
def test_a_users_pass_that_fails_is_named_with_its_line(tmp_path: Path, body: str, message: str, where: str) -> None:
    file = tmp_path / "my_passes.py"
    file.write_text(BROKEN_PASS.replace("BODY", body))
    with pytest.raises(PassError, match=message) as caught:
        parse(f"normalize,{file}:Broken").run(zoo.traced(MODEL), zoo.context(MODEL))
    assert caught.value.where == where.format(file=file)


USERS_PASS = '''
from dataclasses import dataclass
from typing import ClassVar
from mbqc.pipeline import Context, Pass

@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies the weights of the layers that it is given."""

    layers: tuple[str, ...]
    by: float = 2.0
    name: ClassVar[str] = "scale"

    def run(self, graph, context):
        for layer in self.layers:
            graph.get_submodule(layer).weight.data.mul_(self.by)
        return graph
'''


def test_a_users_pass_runs_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "my_passes.py"
    file.write_text(USERS_PASS)
    pipeline = parse(f"normalize,{file}:Scale{{layers='8':,by=0.5}}")
    assert str(parse(str(pipeline))) == str(pipeline)
    graph, (x,) = zoo.traced(MODEL), zoo.example(MODEL)[1]
    scaled = pipeline.run(graph, zoo.context(MODEL), [Verify(ALL)])
    assert isinstance(scaled, fx.GraphModule)
    bias = graph.get_submodule("8").bias
    torch.testing.assert_close(scaled(x) - bias, (graph(x) - bias) / 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [("qant", "there is no pass 'qant'"), ("mbqc.errors:PassError", "is no pass"), ("mbqc.errors:No", "is no pass")],
)
def test_what_is_no_pass_is_refused(name: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        parse(name)


# Verify: passes that break the graph


def dead_node(graph: fx.GraphModule) -> None:
    first = next(iter(graph.graph.nodes))
    with graph.graph.inserting_after(first):
        graph.graph.call_function(torch.ops.aten.relu.default, (first,)).meta["type"] = first.meta["type"]


def untyped(graph: fx.GraphModule) -> None:
    del next(iter(graph.graph.nodes)).next.meta["type"]


def orphan(graph: fx.GraphModule) -> None:
    graph.add_submodule("orphan", torch.nn.ReLU())


def raw_weight(graph: fx.GraphModule) -> None:
    layer = layer_nodes(graph)[1]
    quantizer = layer.args[1]
    assert isinstance(quantizer, fx.Node)
    layer.update_arg(1, quantizer.args[0])
    graph.graph.erase_node(quantizer)
    graph.delete_submodule(str(quantizer.target))


def raw_input(graph: fx.GraphModule) -> None:
    layer = layer_nodes(graph)[1]
    quantizer = layer.args[0]
    assert isinstance(quantizer, fx.Node)
    quantizer.replace_all_uses_with(quantizer.args[0])
    graph.graph.erase_node(quantizer)
    graph.delete_submodule(str(quantizer.target))


def foreign_width(graph: fx.GraphModule) -> None:
    layer = layer_nodes(graph)[1]
    assert isinstance(layer.args[1], fx.Node)
    graph.get_submodule(str(layer.args[1].target)).layer = "nowhere"


def no_widths(graph: fx.GraphModule) -> None:
    graph.graph.find_nodes(op="placeholder")[1].target = "others"


def unknown_sensitivity(graph: fx.GraphModule) -> None:
    del layer_nodes(graph)[1].meta["annotations"]


@dataclass(frozen=True)
class Breaking(Pass):
    """Leaves a broken graph behind."""

    how: Any
    name: ClassVar[str] = "breaking"

    def run(self, graph: fx.GraphModule, context: Context) -> fx.GraphModule:
        self.how(graph)
        return graph


@pytest.mark.parametrize(
    ("before", "how", "message", "where"),
    [
        ("normalize", dead_node, "nothing uses it", "node relu_default"),
        ("normalize", untyped, "it has no type", "node _0"),
        ("normalize", orphan, "nothing calls the module", "module orphan"),
        ("normalize,quant", dead_node, "nothing uses it", "node relu_default"),
        ("normalize,quant", raw_weight, "does not read its weight through a quantizer", "node _3"),
        ("normalize,quant", raw_input, "does not read its input through a quantizer", "node _3"),
        ("normalize,quant", foreign_width, "'nowhere' is asked for, which is no", "node _3_weight_quantizer"),
        ("normalize,quant", no_widths, "has no input 'widths'", "graph"),
        ("normalize,quant,bncorrect", raw_weight, "the weight is not corrected", "node _3"),
        ("normalize,quant,hasb", unknown_sensitivity, "the layer has no sensitivity", "node _3"),
    ],
)  # fmt: skip
def test_a_pass_that_breaks_the_graph_is_reported_with_the_place(
    before: str, how: Any, message: str, where: str
) -> None:
    graph = parse(before).run(zoo.traced(MODEL), zoo.context(MODEL))
    assert isinstance(graph, fx.GraphModule)
    with pytest.raises(VerifyError, match=message) as caught:
        Pipeline((Breaking(how),)).run(graph, zoo.context(MODEL), [Verify(ALL)])
    assert str(caught.value.where).startswith(f"after pass breaking, {where}")
    shown = caught.value.message.splitlines()[1:]
    assert len(shown) >= 4  # the graph around the place
    if where.startswith("node "):
        (marked,) = [line for line in shown if line.startswith("> ")]
        assert marked.split()[1] == "%" + where.removeprefix("node ")


def test_a_broken_program_is_reported_with_the_place() -> None:
    @dataclass(frozen=True)
    class Emptying(Pass):
        """Loses the tensors of a Program."""

        name: ClassVar[str] = "emptying"

        def run(self, graph: fx.GraphModule, context: Context) -> Program:
            return Program(zoo.program(MODEL).listing, {})

    with pytest.raises(VerifyError, match=r"is missing\n(.*\n)*.*program") as caught:
        Pipeline((Emptying(),)).run(zoo.graph(MODEL), zoo.context(MODEL), [Verify(ALL)])
    assert str(caught.value.where).startswith("after pass emptying, operation 1 (conv -> ")


# Other instruments


def test_dump_writes_a_numbered_text_after_each_pass_that_reads_back(tmp_path: Path) -> None:
    pipeline = parse("normalize,quant,bncorrect,lower")
    pipeline.run(zoo.traced(MODEL), zoo.context(MODEL), [Dump(tmp_path / "new")])
    files = sorted((tmp_path / "new").iterdir())
    assert [f.name for f in files] == ["000_normalize.ir", "001_quant.ir", "002_bncorrect.ir", "003_lower.ir"]
    for file, passes in zip(files, ["normalize", "normalize,quant", "normalize,quant,bncorrect"], strict=False):
        text = file.read_text()
        assert print_graph(parse_graph(text, graph_tensors(zoo.graph(MODEL, passes)))) == text
    assert files[-1].read_text() == print_program(zoo.program(MODEL, "normalize,quant,bncorrect"))


def test_timing_reports_the_seconds_of_each_pass_in_order() -> None:
    report = Report()
    parse("normalize,quant").run(zoo.traced(MODEL), zoo.context(MODEL), [Timing(report)])
    assert [name for name, _ in report.seconds] == ["normalize", "quant"]
    assert all(0 < seconds < 60 for _, seconds in report.seconds)


@dataclass(frozen=True)
class Halving(Pass):
    """Changes the numbers of the float model."""

    name: ClassVar[str] = "halving"

    def run(self, graph: fx.GraphModule, context: Context) -> fx.GraphModule:
        graph.get_parameter("8.weight").data.mul_(0.5)
        return graph


def test_compare_names_the_passes_that_change_the_float_model() -> None:
    context = zoo.context(MODEL)
    ready("normalize", Halving(), "quant", "bncorrect", "hasb{probes=2}").run(
        zoo.traced(MODEL), context, [Compare(context)]
    )
    changes = [
        (note.source, note.message) for note in context.report.notes if "changes the float model" in note.message
    ]
    assert [source for source, _ in changes] == ["halving"]


def test_a_report_keeps_a_note_once() -> None:
    report = Report()
    for subject in ("fc", "fc", ""):
        report.add("quant", "skip", subject, "too small")
    assert [str(note) for note in report.notes] == ["quant: fc: too small", "quant: too small"]


# Data that passes are given

X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "calibration data is empty"),
        ([torch.zeros(2, 4)], "batch 0: an input is torch.float32 \\(2, 4\\), the example input"),
        ([X, X.double()], "batch 1: an input is torch.float64"),
        ([torch.zeros(0, 3)], "the batch is empty"),
        ([X, X / 0], "batch 1: an input holds NaN or infinity"),
        ([torch.full((2, 3), float("inf"))], "an input holds NaN or infinity"),
        (["text"], "batch 0: a batch is of type str"),
        ([X, {"x": X}], "calibration data, batch 1: a batch is of type dict"),
        (X, r"calibration is of type Tensor, expected batches\n  try: write calibration=\[...\]"),
        ([(X, X, X)], "a batch has 3 parts, the model takes 1"),
        ([((X, X), X)], "a batch has 3 parts, the model takes 1"),
        ([(X, 7)], "part 2 of 2 in a batch is of type int, not a torch.Tensor"),
        ([(X.numpy(), X)], "part 1 of 2 in a batch is of type ndarray, not a torch.Tensor"),
        ([(X, "label")], "part 2 of 2 in a batch is of type str, not a torch.Tensor"),
    ],
)
def test_calibration_data_that_does_not_fit_is_refused(data: Iterable[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Context((X,), data).calibration_batches()


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "0"])
def test_a_seed_is_a_whole_number_that_torch_takes(seed: Any) -> None:
    with pytest.raises(UsageError, match="must be a whole number from 0 to"):
        Context((X,), seed=seed)


def test_batches_are_inputs_with_or_without_a_target() -> None:
    labels = torch.tensor([0, 1])
    for item, target in [(X, None), ((X,), None), ([X], None), ((X, labels), labels), (((X,), labels), labels)]:
        (((inputs,), found),) = Context((X,), labelled=[item]).labelled_batches()
        assert inputs is X
        assert found is target


def test_without_data_the_example_inputs_serve() -> None:
    context = Context((X,))
    assert context.calibration_batches() == [(X,)]
    assert list(context.labelled_batches()) == [((X,), None)]


def test_calibration_data_given_as_an_iterator_serves_every_pass() -> None:
    context = Context((X,), iter([X, X + 1]))
    assert len(context.calibration_batches()) == len(context.calibration_batches()) == 2
