"""Artifacts taken apart, changed at random, and written again with a checksum that fits."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mbqc import artifact
from mbqc.program.aten import ALLOWED

INTEGERS = (
    -1,
    0,
    1,
    2,
    7,
    9,
    64,
    255,
    1 << 15,
    1 << 16,
    1 << 31,
    (1 << 63) - 1,
    1 << 64,
    -(1 << 31),
    -(1 << 63),
    10**30,
)
FLOATS = (0.0, -1.0, 1e-45, 1e308, math.nan, math.inf, -math.inf)
STRINGS = (
    "",
    "\0",
    "load",
    "system.default",
    "fill_.Scalar",
    "from_file.default",
    "../x",
    "v0",
    "t0",
    *sorted(ALLOWED),
)
NESTED = re.compile(r'"@nested (\d+)"')
"""Stands for an argument nested that deep, which the json module could not write."""


class Parts:
    """An artifact taken apart, to be changed and written with a checksum that fits."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        self.listing, self.manifest = json.loads(metadata["listing"]), json.loads(metadata["manifest"])

    def write(self, path: Path, format: str = "1") -> Path:
        texts = [NESTED.sub(_nested, json.dumps(part)) for part in (self.listing, self.manifest)]
        checksum = artifact._checksum(*texts, self.tensors)
        metadata = {"format": format, "listing": texts[0], "manifest": texts[1], "checksum": checksum}
        save_file(self.tensors, path, metadata)
        return path


def _nested(match: re.Match[str]) -> str:
    depth = int(match[1])
    return '{"is":"list","items":[' * depth + "]}" * depth


def paths(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a JSON tree, its root excepted."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from paths(value, (*at, key))


def find(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def change_listing(parts: Parts, rng: random.Random) -> None:
    change_tree(parts.listing, rng)


def change_manifest(parts: Parts, rng: random.Random) -> None:
    change_tree(parts.manifest, rng)


def change_tree(tree: Any, rng: random.Random) -> None:
    """One change: another value, a copy of another place, an exchange, a new name, or something of another type."""
    places = list(paths(tree))
    if not places:
        return
    *above, key = rng.choice(places)
    parent = find(tree, tuple(above))
    kind = rng.random()
    if kind < 0.5:
        parent[key] = other_value(parent[key], rng)
    elif kind < 0.7:
        parent[key] = copy.deepcopy(find(tree, rng.choice(places)))
    elif kind < 0.8 and isinstance(parent, dict):
        parent[rng.choice(STRINGS)] = parent.pop(key)
    elif kind < 0.9 and isinstance(parent, list):
        rng.shuffle(parent)
    else:
        depth = rng.choice((1, 50, 400, 3000, 100_000))
        parent[key] = rng.choice((None, True, [], {}, "x", 1.5, -1, f"@nested {depth}"))


def other_value(value: Any, rng: random.Random) -> Any:
    """A value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return rng.choice((*INTEGERS, value + 1, value - 1, -value))
        case float():
            return rng.choice((*FLOATS, *INTEGERS))
        case str():
            return rng.choice(STRINGS)
        case list():
            return value[1:] if rng.random() < 0.5 else [*value, *value[:1]]
        case dict():
            return {name: value[name] for name in list(value)[1:]} if rng.random() < 0.5 else {**value, "extra": 1}
        case _:
            return rng.choice((0, 1, "x", 1.5))


def change_tensor(parts: Parts, rng: random.Random) -> None:
    name = rng.choice(list(parts.tensors))
    if rng.random() < 0.1:
        del parts.tensors[name]
        return
    changes: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda t: t.to(rng.choice((torch.float64, torch.int8, torch.bfloat16, torch.uint8, torch.bool))),
        lambda t: t[:-1].clone(),
        lambda t: t[:0].clone(),
        lambda t: t.flatten(),
        torch.zeros_like,
        lambda t: t * math.nan if t.is_floating_point() else t,
        lambda t: t * 1e30 if t.is_floating_point() else t,
    )
    parts.tensors[name] = rng.choice(changes)(parts.tensors[name])
