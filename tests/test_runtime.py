"""A compiled model in memory: what it takes, what it refuses, and that it holds no state of a call."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mbqc
from mbqc.errors import BackendError, InputError, UsageError, WidthsError
from mbqc.runtime import Compiled
from tests.samples import LAYERS, sample_compiled, sample_inputs

IMAGE, IDS = sample_inputs()


@pytest.fixture(scope="module", params=["reference", "cpu"])
def compiled(request: pytest.FixtureRequest) -> Compiled:
    try:
        return sample_compiled(request.param)
    except BackendError as error:
        pytest.skip(str(error))


def equal(a: Tensor | tuple[Tensor, ...], b: Tensor | tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_any_batch_size(compiled: Compiled, batch: int) -> None:
    image, ids = sample_inputs(batch)
    scores, features, rows = compiled(image, ids, bits=4)
    assert (scores.shape, features.shape, rows.shape) == ((batch, 5), (2 * batch,), (batch, 2, 4))
    alone = [compiled(image[i : i + 1], ids[i : i + 1], bits=4)[0] for i in range(batch)]
    assert torch.equal(torch.cat(alone), scores)


def test_arrays_and_tensors_alike(compiled: Compiled) -> None:
    expected = compiled(IMAGE, IDS)
    strided = torch.cat([IMAGE, IMAGE], 3)[..., :6]
    assert not strided.is_contiguous()
    assert equal(compiled(strided, IDS), expected)
    assert equal(compiled(IMAGE.clone().requires_grad_(), IDS), expected)
    assert equal(compiled(IMAGE.numpy(), IDS.numpy()), expected)
    assert equal(compiled(np.asfortranarray(IMAGE.numpy()), IDS), expected)
    assert equal(compiled(IMAGE.numpy()[::-1][::-1], IDS), expected)
    read_only = IMAGE.numpy().copy()
    read_only.setflags(write=False)
    assert equal(compiled(read_only, IDS), expected)


def test_inputs_stay_as_they_are(compiled: Compiled) -> None:
    image, ids = IMAGE.clone(), IDS.clone()
    first = compiled(image, ids, bits=2)
    kept = [part.clone() for part in first]
    compiled(torch.zeros_like(image), ids, bits=8)
    assert torch.equal(image, IMAGE)
    assert equal(tuple(kept), first)  # a later call does not write into results of an earlier one


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), r"takes 2 input\(s\) \(v0, ids\), 0 given"),
        ((IMAGE,), "1 given"),
        ((IMAGE, IDS, IDS), "3 given"),
        ((IMAGE.double(), IDS), r"input v0: has dtype torch.float64, expected torch.float32 Nx3x6x6"),
        ((IMAGE, IDS.int()), "input ids: has dtype torch.int32, expected torch.int64 Nx2"),
        ((IDS, IMAGE), "input v0: has dtype torch.int64"),
        ((IMAGE[:, :2], IDS), r"has shape \(2, 2, 6, 6\), expected torch.float32 Nx3x6x6"),
        ((IMAGE[0], IDS), r"has shape \(3, 6, 6\)"),
        ((IMAGE, IDS[:1]), r"input ids: has shape \(1, 2\)"),
        ((torch.tensor(1.0), IDS), r"has shape \(\)"),
        ((np.array(["a"]), IDS), "dtype <U1, which torch does not know"),
        ((np.array([None]), IDS), "dtype object"),
        ((IMAGE.numpy().astype(">f4"), IDS), "dtype >f4"),
        (([[1.0]], IDS), "is a list, expected a tensor or an array"),
        ((IMAGE.to("meta"), IDS), "lies on meta, expected the cpu"),
        ((IMAGE.to_sparse(), IDS), "is sparse, expected a dense tensor"),
    ],
)
def test_wrong_inputs(compiled: Compiled, inputs: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        compiled(*inputs)
    assert caught.value.exit_code == 1


def test_index_outside_its_table(compiled: Compiled) -> None:
    with pytest.raises(BackendError, match=r"aten.embedding.default failed: .*out of range"):
        compiled(IMAGE, IDS + 7)


def test_widths_by_layer(compiled: Compiled) -> None:
    assert compiled.layers == {"layer0": 8, "layer1": None, "layer2": None, "layer3": 8}
    assert equal(compiled(IMAGE, IDS, bits={...: 4}), compiled(IMAGE, IDS, bits=4))
    mixed = compiled(IMAGE, IDS, bits={"layer1": 2, ...: 4})
    assert equal(mixed, compiled(IMAGE, IDS, bits={"layer0": 8, "layer1": 2, "layer2": 4, "layer3": 8}))
    assert not equal(mixed, compiled(IMAGE, IDS, bits=4))
    with pytest.raises(WidthsError, match="did you mean layer"):
        compiled(IMAGE, IDS, bits={"layer9": 2, ...: 4})
    with pytest.raises(WidthsError, match="from 1 to 8"):
        compiled(IMAGE, IDS, bits=9)


def test_threads_at_different_widths(compiled: Compiled) -> None:
    """Many calls at once give what they give alone."""
    expected = {bits: compiled(IMAGE, IDS, bits=bits) for bits in (8, 3, 2)}

    def call(bits: int) -> bool:
        return all(equal(compiled(IMAGE, IDS, bits=bits), expected[bits]) for _ in range(20))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, (8, 3, 2) * 4))


def test_layers_cannot_be_changed(compiled: Compiled) -> None:
    with pytest.raises(TypeError):
        compiled.layers["layer0"] = 4  # type: ignore[index]


def test_another_backend() -> None:
    compiled = sample_compiled("reference")
    assert compiled.on("reference").program is compiled.program
    with pytest.raises(UsageError, match="there is no backend 'gpu'") as caught:
        compiled.on("gpu")
    assert "cpu, reference" in str(caught.value)


def test_public_names(tmp_path: Path) -> None:
    sample_compiled().save(tmp_path / "m.mbqc")
    loaded: Compiled = mbqc.load(tmp_path / "m.mbqc", backend="reference")
    assert isinstance(loaded, mbqc.Compiled)
    assert list(loaded.layers) == list(LAYERS)
    load: Callable[..., object] = mbqc.load
    with pytest.raises(UsageError):
        load(tmp_path / "m.mbqc", backend="nothing")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mbqc.nothing  # noqa: B018
