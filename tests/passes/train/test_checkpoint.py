"""Checkpoints: bit for bit what was saved, and never lost, whatever kills the process or damages a file."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from mbqc.errors import CheckpointError, UsageError
from mbqc.passes.train.checkpoint.store import Checkpoint, Store

RUN = {"model": "sha256 of a graph", "train epochs": "3"}
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


@dataclass(frozen=True)
class Facts:
    """What a loop could keep."""

    epoch: int = 0
    loss: dict[int, tuple[float, ...]] = field(default_factory=dict)
    note: str = ""


def store(folder: Path, identity: Mapping[str, str] = RUN, keep: int = 2) -> Store[Facts]:
    return Store(folder, identity, Facts, keep)


def state(step: int) -> Checkpoint[Facts]:
    return Checkpoint(step, {"weight": torch.full((3,), float(step)), "codes": torch.arange(4) + step}, Facts(step))


def silent_latest(where: Store[Facts]) -> Checkpoint[Facts]:
    """The newest, which must be readable."""
    found = where.latest(pytest.fail)
    assert found is not None
    return found


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def saved(folder: Path, *steps: int, keep: int = 2) -> Store[Facts]:
    where = store(folder, keep=keep)
    where.prepare()
    for step in steps:
        where.save(state(step))
    return where


def path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08}.safetensors"


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_dtype_and_shape(self, dtype: torch.dtype, tmp_path: Path) -> None:
        bits = torch.randint(0, 2 if dtype is torch.bool else 256, (3 * 5 * 8,), generator=torch.Generator())
        full = bits.to(torch.uint8).view(dtype).reshape(3, -1)  # NaN with a payload among them
        tensors = {"full": full, "turned": full.t(), "empty": full[:, :0], "one": full[1, 2]}
        where = saved(tmp_path)
        where.save(Checkpoint(7, tensors, Facts()))
        back = silent_latest(where).tensors
        assert back.keys() == tensors.keys()
        assert all(same_bits(back[name], tensor) for name, tensor in tensors.items())

    def test_a_random_state_goes_on_where_it_was(self, tmp_path: Path) -> None:
        generator = torch.Generator().manual_seed(3)
        torch.rand(5, generator=generator)
        where = saved(tmp_path)
        where.save(Checkpoint(1, {"random.data": generator.get_state()}, Facts()))
        other = torch.Generator()
        other.set_state(silent_latest(where).tensors["random.data"])
        assert torch.equal(torch.rand(5, generator=other), torch.rand(5, generator=generator))

    def test_shared_memory_comes_back_apart(self, tmp_path: Path) -> None:
        tied = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        where = saved(tmp_path)
        where.save(Checkpoint(1, {"layer1.0.weight": tied, 'a "head"\n.weight': tied, "row": tied[1]}, Facts()))
        back = silent_latest(where).tensors
        back["row"].zero_()
        assert torch.equal(back["layer1.0.weight"], tied)
        assert torch.equal(back['a "head"\n.weight'], tied)

    @settings(max_examples=50)
    @given(epoch=st.integers(), losses=st.lists(st.floats(allow_nan=False)), note=st.text())
    def test_facts(self, epoch: int, losses: list[float], note: str, tmp_path_factory: pytest.TempPathFactory) -> None:
        where = saved(tmp_path_factory.mktemp("facts"))
        facts = Facts(epoch, {8: tuple(losses), 2: (math.inf,)}, note)
        where.save(Checkpoint(1, {}, facts))
        assert silent_latest(where).facts == facts

    def test_a_loss_that_is_not_a_number(self, tmp_path: Path) -> None:
        where = saved(tmp_path)
        where.save(Checkpoint(1, {}, Facts(loss={8: (math.nan,)})))
        assert math.isnan(silent_latest(where).facts.loss[8][0])

    @pytest.mark.parametrize("dtype", [torch.complex128, torch.float8_e8m0fnu], ids=str)
    def test_a_dtype_that_cannot_be_stored(self, dtype: torch.dtype, tmp_path: Path) -> None:
        where = saved(tmp_path, 1)
        with pytest.raises(CheckpointError, match=f"tensor 'x' of dtype {dtype} cannot be stored"):
            where.save(Checkpoint(2, {"x": torch.zeros(2, dtype=dtype)}, Facts()))
        assert where.steps() == [1]

    def test_a_name_that_safetensors_uses_itself(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="tensor '__metadata__'"):
            saved(tmp_path).save(Checkpoint(1, {"__metadata__": torch.zeros(2)}, Facts()))


class TestKeeping:
    def test_the_newest_stay(self, tmp_path: Path) -> None:
        where = saved(tmp_path, 1, 5, 30, 400, keep=3)
        assert where.steps() == [5, 30, 400]
        assert silent_latest(where).facts == Facts(400)

    def test_the_same_step_again(self, tmp_path: Path) -> None:
        assert saved(tmp_path, 1, 2, 2).steps() == [1, 2]

    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        names = ["best.safetensors", "step-1.safetensors", "step-000000001.safetensors", ".mine.part", "history.json"]
        for name in names:
            (tmp_path / name).write_text("mine")
        path(tmp_path, 9).mkdir()
        where = saved(tmp_path, 1, 2, 3)
        assert where.steps() == [2, 3]
        assert all((tmp_path / name).read_text() == "mine" for name in names)

    def test_nothing_yet(self, tmp_path: Path) -> None:
        assert store(tmp_path).latest(pytest.fail) is None
        assert store(tmp_path / "missing").latest(pytest.fail) is None

    def test_keeping_none(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="keep=0"):
            store(tmp_path, keep=0)

    def test_another_run_is_not_overwritten(self, tmp_path: Path) -> None:
        where = saved(tmp_path, 500)
        with pytest.raises(CheckpointError, match="of step 500 already, later than step 10"):
            where.save(state(10))
        assert where.steps() == [500]

    def test_damaged_later_ones_go_once_training_has_passed_by(self, tmp_path: Path) -> None:
        where = saved(tmp_path, 1, 2)
        path(tmp_path, 2).write_bytes(b"garbage")
        path(tmp_path, 3).write_bytes(b"")
        where.save(state(2))
        assert where.steps() == [1, 2]
        assert silent_latest(where).facts == Facts(2)


class TestIdentity:
    def test_what_differs_is_told(self, tmp_path: Path) -> None:
        saved(tmp_path, 1)
        for other, told in (
            ({"model": "other "}, "model: saved sha256 of a graph, now other "),
            ({"train epochs": "4"}, "train epochs: saved 3, now 4"),
            (
                {"model": "a", "train epochs": "b"},
                "model: saved sha256 of a graph, now a; train epochs: saved 3, now b",
            ),
            ({"train rate": "0.1"}, "train rate: saved none, now 0.1"),
        ):
            with pytest.raises(CheckpointError, match=f"another run; {told}\n"):
                store(tmp_path, RUN | other).latest(pytest.fail)
        with pytest.raises(CheckpointError, match="another run; train epochs: saved 3, now none\n"):
            store(tmp_path, {"model": RUN["model"]}).latest(pytest.fail)


class TestDamage:
    def test_truncated_anywhere(self, tmp_path: Path) -> None:
        where = saved(tmp_path, 1, 2)
        content = path(tmp_path, 2).read_bytes()
        for length in range(len(content)):
            path(tmp_path, 2).write_bytes(content[:length])
            self.goes_on_from_step_1(where)

    def test_any_byte_changed(self, tmp_path: Path) -> None:
        where = saved(tmp_path, 1, 2)
        content = bytearray(path(tmp_path, 2).read_bytes())
        for index in range(len(content)):
            content[index] ^= 1 << index % 8
            path(tmp_path, 2).write_bytes(content)
            self.goes_on_from_step_1(where)
            content[index] ^= 1 << index % 8

    @pytest.mark.parametrize("content", [b"", b"garbage", bytes(100), b"\xff" * 100, b"\0" * 7], ids=repr)
    def test_garbage(self, content: bytes, tmp_path: Path) -> None:
        where = saved(tmp_path, 1, 2)
        path(tmp_path, 2).write_bytes(content)
        self.goes_on_from_step_1(where)

    def test_a_renamed_file(self, tmp_path: Path) -> None:
        where = saved(tmp_path, 1)
        path(tmp_path, 2).write_bytes(path(tmp_path, 1).read_bytes())
        self.goes_on_from_step_1(where)

    def test_all_damaged(self, tmp_path: Path) -> None:
        where = saved(tmp_path, 1, 2)
        for step in (1, 2):
            path(tmp_path, step).write_bytes(b"garbage")
        with pytest.raises(CheckpointError, match=r"every checkpoint is damaged: step-00000002.* step-00000001"):
            where.latest(pytest.fail)

    def goes_on_from_step_1(self, where: Store[Facts]) -> None:
        warnings: list[str] = []
        found = where.latest(warnings.append)
        assert found is not None
        assert found.facts == Facts(1)
        assert len(warnings) == 1
        assert re.fullmatch(
            r"checkpoint step-00000002.* is damaged \(.+\): going on from step 1", warnings[0], re.DOTALL
        )


def forged(header: object, body: bytes = b"") -> bytes:
    """A safetensors file of any header with the right checksum, which is not secret."""
    text = json.dumps(header, separators=(",", ":")).encode()
    content = len(text).to_bytes(8, "little") + text + body
    zeros = b'"checksum":"' + b"0" * 64
    return content.replace(zeros, b'"checksum":"' + hashlib.sha256(content).hexdigest().encode())


def metadata(**changes: Any) -> dict[str, Any]:
    record = {"step": 2, "identity": RUN, "facts": {}} | changes
    return {"format": "2", "checksum": "0" * 64, "checkpoint": json.dumps(record)}


HOSTILE: dict[str, Callable[[], bytes]] = {
    "no description": lambda: forged({"__metadata__": {"format": "2", "checksum": "0" * 64}}),
    "not JSON": lambda: forged({"__metadata__": metadata() | {"checkpoint": "import os"}}),
    "nested deeply": lambda: forged({"__metadata__": metadata() | {"checkpoint": "[" * 10**5}}),
    "a long number": lambda: forged({"__metadata__": metadata() | {"checkpoint": "1" * 10**5}}),
    "unknown field": lambda: forged({"__metadata__": metadata(more=1)}),
    "step as text": lambda: forged({"__metadata__": metadata(step="2")}),
    "negative step": lambda: forged({"__metadata__": metadata(step=-2)}),
    "ill-typed facts": lambda: forged({"__metadata__": metadata(facts={"epoch": "one"})}),
    "metadata is null": lambda: forged({"__metadata__": None, "x": {"checksum": "0" * 64}}),
    "metadata of numbers": lambda: forged({"__metadata__": metadata() | {"format": 1}}),
    "unknown dtype": lambda: forged(tensor("F128", [1], 16), bytes(16)),
    "dtype that torch lacks": lambda: forged(tensor("F8_E8M0", [2], 2), bytes(2)),
    "size that does not fit": lambda: forged(tensor("F32", [2], 4), bytes(4)),
    "size beyond 64 bits": lambda: forged(tensor("F32", [2**40, 2**40], 4), bytes(4)),
    "tensors beyond the end": lambda: forged(tensor("U8", [2**40], 2**40), bytes(4)),
    "bytes beyond the tensors": lambda: forged(tensor("U8", [2], 2), bytes(4)),
}


def tensor(dtype: str, shape: list[int], size: int) -> dict[str, Any]:
    return {"__metadata__": metadata(), "x": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}


class TestHostile:
    @pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
    def test_is_refused(self, make: Callable[[], bytes], tmp_path: Path) -> None:
        where = saved(tmp_path, 1)
        path(tmp_path, 2).write_bytes(make())
        TestDamage().goes_on_from_step_1(where)

    def test_forging_makes_readable_files(self, tmp_path: Path) -> None:
        path(tmp_path, 2).write_bytes(forged(tensor("U8", [4], 4), b"abcd"))
        assert raw(silent_latest(store(tmp_path)).tensors["x"]) == b"abcd"

    def test_another_format_is_not_taken_for_damage(self, tmp_path: Path) -> None:
        where = saved(tmp_path, 1)
        path(tmp_path, 2).write_bytes(forged({"__metadata__": metadata() | {"format": "3"}}))
        with pytest.raises(CheckpointError, match="written in format 3, this mbqc reads format 2"):
            where.latest(pytest.fail)

    def test_a_plain_safetensors_file(self, tmp_path: Path) -> None:
        path(tmp_path, 2).write_bytes(save({"x": torch.zeros(2)}))
        with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
            store(tmp_path).latest(pytest.fail)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes behind this position fail half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestBadFolder:
    def test_a_disk_that_fills_up(self, tmp_path: Path) -> None:
        where = saved(tmp_path, 1, 2)
        size = path(tmp_path, 2).stat().st_size
        with file_size_limit(size // 2), pytest.raises(CheckpointError, match="step 2 is still there") as caught:
            where.save(state(3))
        assert str(path(tmp_path, 3)) in str(caught.value)
        self.unchanged(where)

    def test_a_disk_that_is_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        where = saved(tmp_path, 1, 2)

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(CheckpointError, match="No space left on device"):
                where.save(state(3))
        self.unchanged(where)

    def unchanged(self, where: Store[Facts]) -> None:
        assert [entry.name for entry in sorted(where.folder.iterdir())] == [path(where.folder, s).name for s in (1, 2)]
        assert silent_latest(where).facts == Facts(2)

    def test_a_disk_that_is_full_at_once(self, tmp_path: Path) -> None:
        where = saved(tmp_path)
        with file_size_limit(10), pytest.raises(CheckpointError, match="there is no earlier checkpoint"):
            where.save(state(1))
        assert not list(tmp_path.iterdir())

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        where = store(tmp_path / "file")
        for call in (where.prepare, where.steps, lambda: where.latest(pytest.fail), lambda: where.save(state(1))):
            with pytest.raises(CheckpointError, match=r"file: cannot .*(in the folder's place|Not a directory)"):
                call()
        with pytest.raises(CheckpointError, match="Not a directory"):
            store(tmp_path / "file" / "below").prepare()

    def test_a_missing_one_is_made(self, tmp_path: Path) -> None:
        assert saved(tmp_path / "a" / "b", 1).steps() == [1]

    def test_one_that_went_missing(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="No such file or directory"):
            store(tmp_path / "gone").save(state(1))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_not_writable(self, tmp_path: Path) -> None:
        where = saved(tmp_path, 1)
        tmp_path.chmod(0o500)
        for call in (where.prepare, lambda: where.save(state(2))):
            with pytest.raises(CheckpointError, match="Permission denied"):
                call()
        assert where.steps() == [1]

    def test_not_readable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What may be whole is never skipped, since going on from an older one would replace it."""
        where = saved(tmp_path, 1, 2)

        def denied(path: Path) -> bytes:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "read_bytes", denied)
        with pytest.raises(CheckpointError, match=r"step-00000002.*: cannot read the checkpoint: Permission denied"):
            where.latest(pytest.fail)

    def test_unfinished_files_are_ignored_and_removed(self, tmp_path: Path) -> None:
        (tmp_path / f".{'0a' * 8}.part").write_bytes(b"half")
        assert store(tmp_path).latest(pytest.fail) is None
        assert saved(tmp_path, 1).steps() == [1]
        assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001.safetensors"]


KILLS = 200
KILLING = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from mbqc.passes.train.checkpoint.store import Checkpoint, Store

def state(step):
    return Checkpoint(step, {"a": torch.full((20_000,), step), "b": torch.full((50_000,), float(step))}, step)

def damaged(text):
    raise AssertionError(text)

store = Store(Path(sys.argv[1]), {"model": "sha256"}, int)
store.prepare()
kills, enough = int(sys.argv[2]), int(sys.argv[3])
chance, unfinished, last, kill = random.Random(0), 0, 0, 0
while kill < kills or (min(unfinished, last) < enough and kill < 10 * kills):  # a busy machine lets some children rest
    kill += 1
    read, write = os.pipe()
    child = os.fork()
    if not child:
        if kill % 2:  # what was written outlives the process anyway, and a slow disk would hide the other moments
            os.fsync = lambda descriptor: None
        for step in range(last + 1, 10**9):
            store.save(state(step))
            os.write(write, step.to_bytes(8, "little"))
    os.close(write)
    time.sleep(chance.uniform(0.001, 0.03) * (1 + kill / kills))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    told = int.from_bytes(told[-8:], "little") if told else last
    found = store.latest(damaged)
    assert found is not None or told == 0
    if found is not None:
        assert told <= found.step <= told + 1, (told, found.step)
        assert found.facts == found.step
        assert all(torch.equal(t, state(found.step).tensors[n]) for n, t in found.tensors.items())
        last = found.step
    unfinished += any(path.suffix == ".part" for path in store.folder.iterdir())
    store.prepare()
print(unfinished, last)
"""


def test_kills_at_any_time_lose_nothing(tmp_path: Path) -> None:
    """Whatever `save` said was saved is there and whole, and the step under way is whole or absent."""
    enough = KILLS // 20
    command = [sys.executable, "-c", KILLING, str(tmp_path / "run"), str(KILLS), str(enough)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    unfinished, steps = map(int, done.stdout.split())
    assert unfinished >= enough, "too few kills came while a file was being written"
    assert steps >= enough
