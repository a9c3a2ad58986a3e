"""CUDA sources compile for every architecture, into the instructions that were meant."""

import re
import subprocess
import sys
from collections import Counter

import pytest

import cuda_compile
import sass
from cuda_compile import ROOT

# {kernel, without template arguments or with all of them:
#  {architecture, or "" for all: patterns of names of instructions it must have}}
INSTRUCTIONS = {
    "ldmatrix_all": {
        "": [r"LDSM\.16\.M88", r"LDSM\.16\.M88\.2", r"LDSM\.16\.M88\.4"]
        + [r"LDSM\.16\.MT88", r"LDSM\.16\.MT88\.2", r"LDSM\.16\.MT88\.4"]
    },
    "mma_bf16": {"": [r"HMMA\.16816\.F32\.BF16"]},
    "mma_f16": {"": [r"HMMA\.16816\.F32"]},
    "mma_tf32": {"": [r"HMMA\.1688\.F32\.TF32"]},
    "mma_s8": {"": [r"IMMA\.16832\.S8\.S8"]},
    # Blackwell has no binary tensor core: it emulates them.
    "mma_b1_and": {
        arch: [r"BMMA\.168128\.AND\.POPC", r"BMMA\.168256\.AND\.POPC"] for arch in ("80", "90a")
    }
    | {"100a": [r"IMMA\..*"]},
    # Hopper makes two AND products of an XOR.
    "mma_b1_xor": {
        "80": [r"BMMA\.168128\.XOR\.POPC", r"BMMA\.168256\.XOR\.POPC"],
        "90a": [r"BMMA\.168128\.AND\.POPC", r"BMMA\.168256\.AND\.POPC"],
        "100a": [r"IMMA\..*"],
    },
    "cp_async_all": {"": [r"LDGSTS\.E", r"LDGSTS\.E\.64", r"LDGSTS\.E\.BYPASS.*\.128.*"]},
    "named_barriers": {"": [r"BAR\.ARV", r"BAR\.SYNC.*", r"SHFL\.BFLY", r"VOTE\.ANY"]},
    "conversions": {
        "": [
            r"F2FP\.BF16.*",
            r"F2FP\.(F16\.F32\.)?PACK_AB",
            r"MUFU\.EX2",
            r"MUFU\.LG2",
            r"MUFU\.TANH",
            r"FMNMX\.NAN",
        ]
        + [r"MUFU\.RCP"]
    },
    "bit_functions": {"": [r"LOP3\.LUT"]},
    "stmatrix_all": {
        "": [r"STSM\.16\.M88", r"STSM\.16\.M88\.2", r"STSM\.16\.M88\.4", r"STSM\.16\.MT88\.4"]
    },
    "bulk_copies": {
        "": [r"UTMALDG\.2D", r"UTMALDG\.3D", r"UTMALDG\.4D", r"UTMASTG\.2D", r"UTMASTG\.3D"]
        + [r"UTMASTG\.4D", r"UBLKCP\.S\.G", r"UBLKCP\.G\.S", r"UTMACCTL\.PF", r"UTMACMDFLUSH"]
        + [r"SYNCS\.EXCH\.64", r"SYNCS\.ARRIVE\..*", r"SYNCS\.PHASECHK\..*", r"SYNCS\.CCTL\.IV"]
        + [r"FENCE\.VIEW\.ASYNC.*"]
    },
    **{
        f"attention_{kind}_kernel<ForwardShape<bf16, {shape}, (Scores){scores}>{end}": {
            "": [r"HMMA\.16816\.F32\.BF16", r"LDSM\.16\.M88\.4", r"LDSM\.16\.MT88\.4"]
            + [r"LDGSTS\.E\.BYPASS\.128.*", r"MUFU\.EX2"]
        }
        for scores in (0, 1)  # plain, ALiBi
        for kind, shape, end in (
            ("long", "64, 4, 2", " >"),
            ("long", "128, 8, 1", " >"),
            ("short", "32, 4, 1", ", true>"),
            ("short", "64, 4, 1", ", false>"),
        )
    },
    **{
        f"attention_hopper_kernel<HopperShape<bf16, {d}, {warpgroups}, (Scores){scores}> >": {
            "": [rf"HGMMA\.64x{64 * warpgroups}x16\.F32\.BF16", rf"HGMMA\.64x{d}x16\.F32\.BF16"]
            + [r"UTMALDG\.3D", r"SYNCS\.PHASECHK\..*", r"USETMAXREG\..*", r"MUFU\.EX2"]
        }
        for d in (64, 128)
        for warpgroups in (1, 2)
        for scores in (0, 1)
    },
    **{
        f"attention_hopper_backward_kernel<HopperBackwardShape<{shape}, (Scores){scores}> >": {
            "": [scored, summed, r"UTMALDG\.3D", r"SYNCS\.PHASECHK\..*", r"USETMAXREG\..*"]
            + [r"MUFU\.EX2"]
        }
        for dtype, product in (("bf16", r"x16\.F32\.BF16"), ("f16", r"x16\.F32"))
        for d in (64, 128)
        for warpgroups in (1, 2)
        for of_keys in (False, True)
        for scores in (0, 1)
        for shape, scored, summed in [
            (
                f"{dtype}, {d}, {warpgroups}, {str(of_keys).lower()}",
                rf"HGMMA\.64x{32 if of_keys and d == 128 else 64}{product}",
                rf"HGMMA\.64x{d}{product}",
            )
        ]
    },
    **{
        f"attention_backward_kernel<BackwardShape<{dtype}, {head_dim}, (Scores){scores}> >": {
            "": [product, r"LDSM\.16\.M88\.4", r"LDSM\.16\.MT88\.4"]
            + [r"LDGSTS\.E\.BYPASS\.128.*", r"MUFU\.EX2"]
        }
        for dtype, product in (("bf16", r"HMMA\.16816\.F32\.BF16"), ("f16", r"HMMA\.16816\.F32"))
        for head_dim in (32, 64, 128, 256)
        for scores in (0, 1)
    },
    **{
        f"binary_attention_{kind}_kernel<BinaryShape<{shape}> >": {
            "": [r"BMMA\.168128\.AND\.POPC", r"BMMA\.168256\.AND\.POPC", r"LDSM\.16\.M88\.4"]
        }
        for kind, tiles in (("long", 2), ("short", 1))
        for shape in (f"{tiles}, false", f"{tiles}, true")
    },
    "binary_qk_attention_kernel": {
        "": [r"BMMA\.168128\.AND\.POPC", r"HMMA\.16816\.F32.*", r"LDSM\.16\.MT88\.4"]
        + [r"LDGSTS\.E\.BYPASS\.128.*", r"MUFU\.EX2"]
    },
    **{
        f"binary_qk_attention_kernel<BinaryQkShape<{out}, signed char, {tiles}> >": {
            "": [r"HMMA\.16816\.F32\.BF16", r"F2FP\.BF16.*", r"LDGSTS\.E", r"PRMT"]
        }
        for out in ("bf16", "f16")
        for tiles in (1, 2)
    },
    "binary_linear_kernel": {
        "": [r"LDGSTS\.E\.64.*", r"LDGSTS\.E\.BYPASS\.128.*"],
        "80": [r"BMMA\.168256\.XOR\.POPC"],
        "90a": [r"BMMA\.168256\.AND\.POPC"],
    },
    "binary_wgmma_kernel": {"": [r"BGMMA\.64x128x256\.AND\.POPC", r"LDGSTS\.E\.BYPASS\.128.*"]},
    "lowbit_linear_kernel": {
        "": [r"IMMA\.16832\.S8\.S8", r"LDSM\.16\.M88\.4", r"LDGSTS\.E\.BYPASS\.128.*"]
    },
    "lowbit_wgmma_kernel": {"": [r"IGMMA\.64x128x32\.S8\.S8", r"LDGSTS\.E\.BYPASS\.128.*"]},
    "lowbit_wgmma_groups_kernel": {
        "": [r"IGMMA\.64x64x32\.S8\.S8", r"LDGSTS\.E", r"LDGSTS\.E\.BYPASS\.128.*"]
    },
    "quantize_kernel": {"": [r"LDG\.E\.128.*"]},
    "norm_quantize_kernel": {"": [r"LDG\.E\.128.*"]},
    "lowbit_floats_kernel": {"": [r"HMMA\.16816\.F32(\.BF16)?", r"LDGSTS\.E\.BYPASS\.128.*"]},
    "register_budgets": {"": [r"USETMAXREG\.DEALLOC.*", r"USETMAXREG\.TRY_ALLOC.*"]},
} | {
    f"wgmma_products<{types}, {n}, (Major)0, (Major)0>": {"": [name.replace("@", str(n))]}
    for types, name in {
        "bf16, float": r"HGMMA\.64x@x16\.F32\.BF16",
        "f16, float": r"HGMMA\.64x@x16\.F32",
        "e4m3, float": r"QGMMA\.64x@x32\.F32\.E4M3\.E4M3",
        "signed char, int": r"IGMMA\.64x@x32\.S8\.S8",
        "b1, int": r"BGMMA\.64x@x256\.AND\.POPC",
    }.items()
    for n in (8, 16, 32, 64, 96, 128, 192, 256)
}


@pytest.fixture(scope="module")
def compiled():
    return cuda_compile.compile_all()


def test_kernels_have_their_instructions(compiled):
    missing = set(INSTRUCTIONS)
    for (_, architecture), kernels in compiled.items():
        for kernel in kernels:
            for name in {kernel.name, kernel.name.split("<")[0]} & INSTRUCTIONS.keys():
                missing.discard(name)
                expected = INSTRUCTIONS[name]
                for pattern in expected.get("", []) + expected.get(architecture, []):
                    assert any(re.fullmatch(pattern, i) for i in kernel.instructions), (
                        f"{kernel.name} for sm_{architecture} has no {pattern}: "
                        f"{kernel.notable() or kernel.instructions}"
                    )
    assert not missing, f"no such kernels: {missing}"


def test_hopper_softmax_runs_under_products(compiled):
    """The compiler leaves the exponentials of a tile where they are written: behind the start of
    the products with V, in front of the wait for them."""
    kernels = [kernel for found in compiled.values() for kernel in found]
    hopper = [kernel for kernel in kernels if kernel.name.startswith("attention_hopper_kernel")]
    assert len(hopper) == 16
    for kernel in hopper:
        assert not kernel.notes
        (loop,), (hidden,) = kernel.loops, kernel.hidden
        assert hidden["MUFU.EX2"] == loop["MUFU.EX2"] >= 24
        assert hidden["FFMA"] > 0.9 * loop["FFMA"]


def test_wgmma_is_not_serialized(compiled):
    """ptxas leaves products as asynchronous as they are written, and says nothing of them."""
    kernels = [kernel for found in compiled.values() for kernel in found]
    linears = [kernel for kernel in kernels if re.match(r"\w+_wgmma_\w+<", kernel.name)]
    assert len(linears) == 2 + 4 + 4 * 3  # of bits, of codes, of codes in groups
    assert not [(kernel.name, kernel.notes) for kernel in linears if kernel.notes]


def test_hopper_gradients_run_under_products(compiled):
    """The same of the backward: exponentials and derivatives between the start of the products and
    the wait for the last of them. Descriptors are computed once per warp, not per thread."""
    seen = 0
    for kernels in compiled.values():
        for kernel in kernels:
            if not kernel.name.startswith("attention_hopper_backward_kernel"):
                continue
            seen += 1
            (loop,), (hidden,) = kernel.loops, kernel.hidden
            scores = 16 if re.search("128, ., true", kernel.name) else 32
            assert not kernel.notes
            assert hidden["MUFU.EX2"] == loop["MUFU.EX2"] == scores
            assert hidden["FADD"] + hidden["FFMA"] == loop["FADD"] + loop["FFMA"] >= 2 * scores
            assert loop.get("R2UR", 0) <= 2
    assert seen == 32


def hot_kernels(compiled):
    """(kernel, architecture) of all but scores 2: the rare options, softcap, clip and the like."""
    for (_, architecture), kernels in compiled.items():
        for kernel in kernels:
            if "(Scores)2" not in kernel.name:
                yield kernel, architecture


def test_nothing_spills(compiled):
    spilling = [
        f"{kernel.name} for sm_{architecture}: {kernel.spills} bytes"
        for kernel, architecture in hot_kernels(compiled)
        # The backward keeps some numbers of a unit of work on the stack; its loops do not: below.
        if kernel.spills and "<BackwardShape" not in kernel.name
    ]
    assert not spilling


def test_no_loop_with_products_touches_the_stack(compiled):
    touching = [
        f"{kernel.name} for sm_{architecture}"
        for kernel, architecture in hot_kernels(compiled)
        for loop in kernel.loops
        if any(name.startswith(("LDL", "STL")) for name in loop)
    ]
    assert not touching


@pytest.mark.parametrize(
    ("shape", "products"), (("64, 4, 2", 128), ("128, 8, 1", 128), ("64, 4, 1", 64))
)
def test_instructions_of_a_tile(compiled, shape, products):
    """A tile of 16 M x 64 scores takes 2 * M * 8 * D / 16 products, an exponential per score, and
    little else: what is beside the products is bounded by the floor and a constant."""
    scores = 32 * int(shape.split(", ")[2])
    seen = 0
    for kernel, _ in hot_kernels(compiled):
        if f"ForwardShape<bf16, {shape}, " not in kernel.name:
            continue
        (loop,) = kernel.loops
        assert sum(n for name, n in loop.items() if sass.PRODUCT.match(name)) == products
        assert loop["MUFU.EX2"] == scores
        assert sum(loop.values()) - products < 4.5 * scores + 220
        seen += 1
    assert seen == 6  # plain and ALiBi for three architectures


def test_scores_become_bits_by_one_shift_each(compiled):
    """Funnel shifts of binary attention: one per score, and 5 per transposition of 32 x 32 bits, of
    which a block's warps have 4 and warps alone, in the short kernel, 8 more."""
    found = 0
    for (_, architecture), kernels in compiled.items():
        for kernel in kernels:
            if not (named := re.match(r"binary_attention_(long|short)_kernel", kernel.name)):
                continue
            found += 1
            shifts = sum(n for i, n in kernel.instructions.items() if i.startswith("SHF.L.W"))
            bodies, transpositions = (1, 4) if named[1] == "long" else (2, 4 + 8)
            tiles = 2 if named[1] == "long" else 1
            scores = bodies * 256 * 16 * tiles // 32
            assert shifts == scores + 5 * transpositions, f"{kernel.name} for sm_{architecture}"
    assert found == 8


def test_values_of_int8_are_widened_once(compiled):
    """Beside what 16-bit values take, a turn of attention with int8 values multiplies every weight
    by a scale, and its 128 threads turn 64 x 64 bytes into bf16 by a permutation and a subtraction
    each and half a conversion and a quarter of an inversion: 32 a thread."""
    found = 0
    for kernels in compiled.values():
        by_name = {kernel.name: kernel for kernel in kernels}
        for kernel in kernels:
            if "BinaryQkShape" not in kernel.name or "signed char" not in kernel.name:
                continue
            found += 1
            scores = 32 * int(kernel.name[-4])
            plain = by_name[re.sub(r"<b?f16, signed char", "<bf16, bf16", kernel.name)]
            (loop,), (least,) = map(Counter, kernel.loops), map(Counter, plain.loops)
            assert loop["PRMT"] - least["PRMT"] == 32
            assert loop["MUFU.EX2"] == least["MUFU.EX2"] == scores
            assert sum(loop.values()) - sum(least.values()) < scores + 2.75 * 32 + 40
            assert not any(name.startswith("I2F") for name in loop)
    assert found == 8


def test_linears_of_bits_have_one_kind_of_product(compiled):
    """XOR where it is one instruction, and then only channels are counted (those of codes, in a loop
    of two words a turn); AND on Hopper, where rows are counted as well, 8 halves of words in line."""
    found = 0
    for (_, architecture), kernels in compiled.items():
        for kernel in kernels:
            if not (named := re.match(r"binary_linear_kernel<BinaryTile<(\d)>", kernel.name)):
                continue
            found += 1
            kind, counts = ("XOR", 4) if architecture == "80" else ("AND", 4 + 8)
            products = {name: n for name, n in kernel.instructions.items() if "MMA" in name}
            assert products == {f"BMMA.168256.{kind}.POPC": 8 * int(named[1])}
            assert kernel.instructions["POPC"] == counts, f"{kernel.name} for sm_{architecture}"
    assert found == 4


def test_probe_of_bits_measures_what_it_names():
    kernels = cuda_compile.compile_source(ROOT / "bench/probe_binary_sm90a.cu", "90a")
    found = {kernel.name: Counter(kernel.instructions) for kernel in kernels}
    assert not any(kernel.spills for kernel in kernels)
    assert found["bmma_k128_kernel"]["BMMA.168128.AND.POPC"] >= 8
    assert found["bmma_k256_kernel"]["BMMA.168256.AND.POPC"] >= 8
    coupled = found["shift_coupled_kernel"]
    assert coupled["SHF.L.W.U32.HI"] == 4 * coupled["BMMA.168128.AND.POPC"] == 64
    for registers in ("false", "true"):
        assert found[f"bgmma_kernel<{registers}>"]["BGMMA.64x128x256.AND.POPC"] >= 4


@pytest.mark.parametrize("name", ("cuda_kernels", "cuda_instructions"))
def test_table_is_current(compiled, name, tmp_path):
    """bench/results/<name>.md is what bench/<name>.py writes."""
    fresh = tmp_path / "table.md"
    script = ROOT / f"bench/{name}.py"
    subprocess.run([sys.executable, script, "--output", fresh], check=True)
    committed = ROOT / f"bench/results/{name}.md"
    assert fresh.read_text() == committed.read_text(), f"run {script.relative_to(ROOT)} and commit"
