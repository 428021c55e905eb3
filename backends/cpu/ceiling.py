"""What this machine can do at most, measured by loops of nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from mbqc.backend import Ceilings, Peak
from mbqc.backends.cpu.native import Kernels
from mbqc.backends.cpu.packed import FIELDS, packed_name

ROUNDS = 400_000
"""Of an arithmetic probe: about a millisecond."""

REPEATS = 8
"""The best of so many counts, since others may use the machine."""

READ_SIZES = tuple(1 << power for power in range(14, 28))
"""From the first cache to memory beyond what one core finds in its share of the last."""

READ_BYTES = 1 << 26
"""That a probe of reading reads at least."""


def measure(kernels: Kernels, threads: int) -> Ceilings:
    """The limits of `threads` threads at once; takes about 0.2 s."""
    memory = torch.ones(READ_SIZES[-1], dtype=torch.uint8)  # written, since untouched memory is one page of zeros
    with ThreadPoolExecutor(threads) as pool:

        def rate(probe: Callable[[int], int]) -> float:
            """10^9 a second of what `probe(thread)` counts, all threads together."""

            def one(thread: int) -> float:
                start = time.perf_counter()
                return probe(thread) / (time.perf_counter() - start) / 1e9

            return max(sum(pool.map(one, range(threads))) for _ in range(REPEATS))

        def read(size: int) -> float:
            """Of a buffer of `size` bytes of which each thread reads a part."""
            part, rounds = size // threads, max(1, READ_BYTES // size)
            return rate(lambda thread: kernels.probe("read", rounds, memory.data_ptr() + thread * part, part))

        multiply = rate(lambda thread: kernels.probe("multiply", ROUNDS))
        count = rate(lambda thread: kernels.probe("count_bits", ROUNDS))
        measured = [read(size) for size in READ_SIZES]
    # what a larger buffer can do, a smaller one can: the best of all sizes from each on
    reads = {size: max(measured[index:]) for index, size in enumerate(READ_SIZES)}
    peaks = {kernels.isa: Peak(multiply)}
    peaks |= {packed_name(kernels.isa, field): Peak(multiply, field) for field in sorted(set(FIELDS.values()))}
    peaks |= {f"{kernels.isa} popcount": Peak(count, 1.0)} if count else {}
    return Ceilings(peaks, reads)
