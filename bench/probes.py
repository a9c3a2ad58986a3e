"""The roofs of a machine: what its arithmetic and its memory reach at best, measured here and now.

CPU: loops of csrc/cpu/probe.kernel.cpp over registers, for the active instruction set, on as many
threads as the benchmarks use. GPU: cuBLAS products and a copy, the best that torch offers.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from taut._native import libraries

REPETITIONS = 20
SECONDS = 0.005  # of one repetition
ARITHMETIC = ("fp32", "bf16", "int8", "popcount")
MEMORY_BYTES = 128 << 20
CACHE_BYTES = 1 << 20  # a thread's share of the cache
Clock = Callable[[], float]


def _best_rate(run: Callable[[int], object], per_unit: float, clock: Clock) -> float:
    """The highest of some rates of run(units), each of about SECONDS."""
    units, taken = 1, 0.0
    while taken < SECONDS:
        units *= 2
        begin = clock()
        run(units)
        taken = clock() - begin
    best = 0.0
    for _ in range(REPETITIONS):
        begin = clock()
        run(units)
        best = max(best, units * per_unit / (clock() - begin))
    return best


def _cpu_roofs(threads: int, clock: Clock) -> dict[str, float]:
    module = libraries.module
    roofs = {}
    with ThreadPoolExecutor(threads) as pool:

        def rate(function, per_unit):
            """Of function(units, thread) on all threads; what it calls releases the GIL."""

            def everywhere(units):
                if threads == 1:
                    return function(units, 0)
                return list(pool.map(lambda i: function(units, i), range(threads)))

            return _best_rate(everywhere, threads * per_unit, clock)

        for kind in ARITHMETIC if module else ():
            probe = partial(module.probe, kind)
            roofs[kind] = rate(lambda units, _, probe=probe: probe(units), probe(0))

        torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # each copy has a thread of its own
        for name, size in (("cache", CACHE_BYTES), ("memory", MEMORY_BYTES)):
            source = torch.ones(threads, size // 4)
            target = torch.empty_like(source)

            def copy(units, i, source=source, target=target):
                for _ in range(units):
                    target[i].copy_(source[i])

            roofs[name] = rate(copy, 2 * size)
        torch.set_num_threads(torch_threads)
    return roofs


def _cuda_roofs() -> dict[str, float]:
    n = 8192
    wide_a, wide_b = torch.randn(2, n, n, device="cuda")
    a, b = wide_a.bfloat16(), wide_b.bfloat16()
    x, y = torch.randint(-9, 9, (2, n, n), device="cuda", dtype=torch.int8)
    y = y.T  # cuBLAS wants its second operand of int8 by columns
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)

    def rate(run, work):
        def repeat(units):
            for _ in range(units):
                run()
            torch.cuda.synchronize()

        return _best_rate(repeat, work, time.perf_counter)

    return {
        "fp32": rate(lambda: wide_a @ wide_b, 2 * n**3),
        "bf16": rate(lambda: a @ b, 2 * n**3),
        "int8": rate(lambda: torch._int_mm(x, y), 2 * n**3),
        "memory": rate(lambda: target.copy_(source), 2 * len(source)),
    }


def roofs(device: torch.device, threads: int, clock: Clock = time.perf_counter) -> dict[str, float]:
    """{"fp32", "bf16", "int8": FLOP/s or OP/s, "popcount": binary op/s, "memory", "cache": B/s}, as
    far as this machine and build have them."""
    return _cuda_roofs() if device.type == "cuda" else _cpu_roofs(threads, clock)
