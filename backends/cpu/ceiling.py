"""What this machine can do at most, measured by loops of nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from mbqc.backend import Ceilings, Peak
from mbqc.backends.cpu.native import Kernels

ROUNDS = 50_000
"""Of an arithmetic probe: a millisecond or two."""

REPEATS = 8
"""The best of so many counts, since others may use the machine."""

READ_SIZES = tuple(1 << power for power in range(14, 28))
"""From the first cache to memory, which no cache of one core's share holds."""

READ_BYTES = 1 << 24
"""That a probe of reading reads at least."""


def measure(kernels: Kernels, threads: int) -> Ceilings:
    """The limits of `threads` threads at once; takes about 0.2 s."""
    with ThreadPoolExecutor(threads) as pool:

        def rate(probe: Callable[[int], int]) -> float:
            """10^9 a second of what `probe(thread)` counts, all threads together."""
            best = 0.0
            for _ in range(REPEATS):
                start = time.perf_counter()
                total = sum(pool.map(probe, range(threads)))
                best = max(best, total / (time.perf_counter() - start) / 1e9)
            return best

        multiply, count = (rate(lambda _, limit=limit: kernels.probe(limit, ROUNDS)) for limit in ("multiply", "count_bits"))
        memory = torch.ones(READ_SIZES[-1], dtype=torch.uint8)
        reads = {}
        for size in READ_SIZES:
            part, address = size // threads, memory.data_ptr()

            def read(thread: int, part: int = part, size: int = size, address: int = address) -> int:
                rounds = max(1, READ_BYTES // size)
                return kernels.probe("read", rounds, address + thread * part, part)

            reads[size] = rate(read)
    return Ceilings({kernels.isa: Peak(multiply), f"{kernels.isa} popcount": Peak(count, 1)}, reads)
