"""Dropout is found wherever a model has it, and who trains is told that it does not act."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from mbqc.api import compile_model, pipeline_of
from mbqc.frontend.dropout import dropouts
from mbqc.frontend.trace import trace
from mbqc.pipeline import Context

X, LABELS = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4


class Drops(nn.Module):
    """By a module called twice, by one that is never called, by a function, and by one with probability 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2))
        self.zero, self.unused, self.last = nn.Dropout(0.0), nn.Dropout(0.9), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first[1](self.zero(self.first(x)))
        return self.last(F.dropout(x, 0.3, self.training))


class Exported(Drops):
    """The same where symbolic tracing does not get through."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.normalize(x))


@pytest.mark.parametrize(("build", "traced_by"), [(Drops, "torch.fx"), (Exported, "torch.export")])
def test_modules_are_found_by_path_and_functions_by_line(build: type[nn.Module], traced_by: str) -> None:
    model = build().eval()
    graph = trace(model, (X,))
    assert graph.meta["traced_by"] == traced_by
    found = dropouts(model, graph)
    assert found.pop("first.1") == 0.2
    assert [(name.split(":")[0].endswith("test_dropout.py"), share) for name, share in found.items()] == [(True, 0.3)]


def test_attention_drops_inside() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True).eval()
    found = dropouts(model, trace(model, (X.reshape(4, 4, 8),)))
    assert found == dict.fromkeys(["self_attn", "dropout", "dropout1", "dropout2"], 0.1)


def test_what_drops_nothing_has_none() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Identity(), nn.ReLU(), nn.Linear(8, 4)).eval()
    assert dropouts(model, trace(model, (X,))) == {}


def notes(model: nn.Module, passes: str) -> list[Any]:
    context = Context((X,), labelled=(X, LABELS))
    compile_model(model.eval(), pipeline_of(passes), context)
    return [note for note in context.report.notes if "dropout" in note.message]


def test_who_trains_is_told() -> None:
    (note,) = notes(Drops(), "quant{pin_ends=false},train{epochs=1,batch=8}")
    assert (note.source, note.kind) == ("train", "warning")
    assert note.message.startswith("dropout in 2 place(s) is removed and does not act in this training: ")
    assert "first.1 (p=0.2)" in note.message
    assert "test_dropout.py:" in note.message


def test_who_does_not_train_is_not() -> None:
    assert notes(Drops(), "quant{pin_ends=false}") == []
    assert notes(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), "quant{pin_ends=false},train{epochs=1,batch=8}") == []
