"""Write what the inner loops of the attention kernels execute per score, by class."""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import cuda_compile  # noqa: E402
from cuda_kernels import nvcc_version  # noqa: E402

SOURCES = (
    "attention_forward_bf16",
    "attention_forward_bf16_sm90a",
    "attention_backward_bf16",
    "attention_backward_bf16_sm90a",
)
HEADER = """# Instructions per score

Written by `bench/cuda_instructions.py` with nvcc {version}; no GPU is involved. One turn of a
kernel's innermost loop with matrix products, from the machine code: the turn of a tile that no end,
window or diagonal crosses, with the copies of the next tile and without the branches it does not
take (`product_loops` in `tests/sass.py`). Counts are of a thread, divided by the scores it holds in
that turn. The floor is the arithmetic of a score that no formulation here avoids:

- forward, 4.5: maximum, scale and shift (one product-sum), exponential, sum, half a conversion;
- backward by queries, 3.5: product-sum, exponential, product with its gradient, half a conversion
  (delta is what accumulators start from);
- backward by keys, 4: the same with two weights to convert.

Hopper's products start from zero, so there delta is a sum of its own, and ALiBi a product-sum.

`ALiBi` is what a kernel with slopes executes more than the plain one of its shape. In the backward
by queries that includes the gradient of the slopes.
"""
# What a turn consists of; the first class whose pattern matches counts the instruction.
CLASSES = {
    "products": r"[HIBQO]G?MMA\b",
    "exp2": r"MUFU\.EX2",
    "fp32": r"F(FMA|MUL|ADD|MNMX3?|SEL|SETP|CHK)|HADD|HMUL|HFMA|MUFU",
    "convert": r"F2F|I2F|F2I",
    "shared": r"LDS|STS|LDSM|STSM",
    "copies": r"LDGSTS|UTMA|UBLK|LDG|STG|LDC|ULDC|LDL|STL",
    "moves": r"MOV|IMAD\.MOV|CS2R|UMOV|S2R|R2UR|SHFL|PRMT|P2R|R2P",
    "integer": r"U?(IADD|IMAD|LEA|LOP|SHF|SEL|IMNMX|VIMNMX|IABS|ISETP|PLOP|VIADD|SGXT|IADD64)|VOTE",
    "control": r"",
}


@dataclass(frozen=True)
class Turn:
    """One turn of a kernel's loop: instructions per score."""

    kernel: str
    architecture: str
    kind: str
    shape: str
    has_slopes: bool
    floor: float
    scores: float  # of a thread, in one turn
    counts: dict[str, float]

    def beside_products(self) -> float:
        """All but the matrix products."""
        return sum(n for name, n in self.counts.items() if name != "products")


NAME = re.compile(r"attention_(\w+)_kernel<(\w+)Shape<\w+, (.+), \(Scores\)([01])>")
FLOORS = {"forward": 4.5, "queries": 3.5, "keys": 4.0}


def classify(name: str) -> str:
    """The class of an instruction by its full name."""
    return next(kind for kind, pattern in CLASSES.items() if re.match(pattern, name))


def multiply_adds(loop: dict[str, int]) -> int:
    """Those of a thread: HMMA.16816 has 16 x 8 x 16 by 32 threads, HGMMA.64xNx16 those of 128."""
    total = 0
    for name, n in loop.items():
        if wide := re.match(r"HGMMA\.64x(\d+)x16\b", name):
            total += n * 64 * int(wide[1]) * 16 // 128
        elif re.match(r"HMMA\.16816\b", name):
            total += n * 16 * 8 * 16 // 32
    return total


def turns(kernel: cuda_compile.Kernel, architecture: str) -> list[Turn]:
    """The longest loop of each kind in one kernel; none unless its scores are plain or ALiBi's."""
    if not (name := NAME.match(kernel.name)):
        return []
    head_dim, has_slopes, found = int(name[3].split(",")[0]), name[4] == "1", {}
    is_backward = name[2].endswith("Backward")
    for loop in kernel.loops:
        # On Hopper, ALiBi is 16 more channels in one of the two products.
        channels = head_dim + (8 if name[2] == "Hopper" and has_slopes else 0)
        work = multiply_adds(loop) / channels
        products = round(work / loop["MUFU.EX2"]) if is_backward else 2
        kind = {3: "queries"}.get(products, "keys") if is_backward else "forward"
        scores, counts = work / products, dict.fromkeys(CLASSES, 0.0)
        for instruction, n in loop.items():
            counts[classify(instruction)] += n / scores
        turn = Turn(name[1], architecture, kind, name[3], has_slopes, FLOORS[kind], scores, counts)
        found[kind] = max(turn, found.get(kind, turn), key=Turn.beside_products)
    return list(found.values())


def all_turns() -> list[Turn]:
    """Of every architecture."""
    found = []
    for path in (ROOT / f"csrc/cuda/{source}.cu" for source in SOURCES):
        for architecture in cuda_compile.architectures(path):
            for kernel in cuda_compile.compile_source(path, architecture):
                found += turns(kernel, architecture)
    return found


def table(found: list[Turn]) -> str:
    """One line per loop."""
    plain, lines = {}, []
    for turn in sorted(found, key=lambda turn: turn.has_slopes):
        key = (turn.kernel, turn.architecture, turn.kind, turn.shape)
        name = f"{turn.kernel} {turn.shape}" + (" ALiBi" if turn.has_slopes else "")
        alone = turn.beside_products()
        extra = f"{alone - plain.setdefault(key, alone):.2f}" if turn.has_slopes else ""
        plain.setdefault(key, alone)
        cells = [turn.kind, name, f"sm_{turn.architecture}", f"{turn.scores:.0f}"]
        cells += [f"{turn.counts[c]:.2f}" for c in CLASSES]
        lines.append("| " + " | ".join([*cells, f"{alone:.2f}", str(turn.floor), extra]) + " |")
    head = ["loop", "kernel", "for", "scores", *CLASSES, "beside products", "floor", "ALiBi"]
    rule = "|---" * len(head) + "|"
    return "\n".join([f"| {' | '.join(head)} |", rule, *sorted(lines)]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "bench/results/cuda_instructions.md")
    output = parser.parse_args().output
    output.write_text(HEADER.format(version=nvcc_version()) + "\n" + table(all_turns()))
