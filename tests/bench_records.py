"""A record of taut bench as a document, made up: every kind of row, round numbers, no measurement."""

import copy

ROOFS = {
    "fp32": 2.2e11,
    "bf16": 4.4e11,
    "int8": 9e11,
    "popcount": 8e12,
    "cache": 2e11,
    "memory": 4e10,
}
VERSION = "torch 2.13.0"


def benchmark(stem, op, case, dtype, contender, seconds, **extra):
    role = "taut" if contender.startswith("taut") else "peer"
    row = {
        "stem": stem, "op": op, "contender": contender, "role": role, "case": case, "axes": {},
        "peer_version": None if role == "taut" else VERSION, "dtype": dtype, "device": "cpu",
        "isa": "avx512_bf16", "threads": 2, "variant": "avx512_bf16" if role == "taut" else None,
        "tokens": 4096, "flops": 0, "bytes": 0, "roof": None, "bandwidth": "memory",
        "roof_share": None, "processes": 5,
        "error": 1e-6, "allowed_error": 2e-6, "correct": True, **extra,
    }  # fmt: skip
    shares = [row["bytes"] / ROOFS["memory"] / seconds]
    if row["roof"]:
        shares.append(row["flops"] / ROOFS[row["roof"]] / seconds)
    row["roof_share"] = max(shares)
    group = f"{op} | {case} | {dtype}"
    stats = {"median": seconds, "iqr": 0.02 * seconds, "q1": 0.99 * seconds, "q3": 1.01 * seconds,
             "min": 0.98 * seconds, "max": 1.1 * seconds, "rounds": 15, "data": [seconds] * 15}  # fmt: skip
    return {"group": group, "name": f"test_{stem}[{contender}]", "stats": stats, "extra_info": row}


def attention():
    for dtype, rate, slower in (("fp32", 1.5e11, 2.0), ("bf16", 3e11, 4.0)):
        for length in (64, 512, 2048):
            flops = 4.0 * 4096 * length * 768
            work = {"flops": flops, "bytes": 4096 * 768 * 8.0, "roof": dtype,
                    "axes": {"lengths": "constant", "length": length, "head_dim": 64}}  # fmt: skip
            case = f"constant {length}, 12 heads, d=64"
            seconds = flops / (rate * (1 - 16 / length))
            for contender, factor in (("taut", 1), ("sdpa loop", slower), ("sdpa padded", 4)):
                yield benchmark("attention", "varlen_attention", case, dtype, contender,
                                seconds * factor, **work)  # fmt: skip


def linear():
    for rows in (1, 32, 512):
        flops = 2.0 * rows * 768 * 3072
        axes = {"rows": rows, "in_features": 768, "out_features": 3072}
        case = f"{rows} x 768 to 3072"
        weights = 768 * 3072
        for dtype, peak, width in (("fp32", 2e11, 4.0), ("bf16", 4e11, 2.0)):
            work = {"flops": flops, "bytes": weights * width, "roof": dtype, "axes": axes}
            seconds = max(flops / peak, weights * width / 3.5e10)
            for contender, factor in (("taut", 1), ("onednn prepacked", 0.98), ("torch", 1.1)):
                yield benchmark("dense_gemm", "packed_linear", case, dtype, contender,
                                seconds * factor, **work)  # fmt: skip
        for bits in (2, 8):
            work = {"flops": flops, "bytes": weights * bits / 8, "roof": "int8",
                    "axes": {**axes, "bits": bits}}  # fmt: skip
            seconds = max(flops / 8e11, weights * bits / 8 / 3.5e10)
            for contender, factor in (("taut", 1), ("onednn qlinear", 1.02)):
                yield benchmark("lowbit_gemm", "lowbit_linear", f"{case}, {bits} bits", "int8",
                                contender, seconds * factor, **work)  # fmt: skip


def norm():
    for rows in (512, 4096):
        moved = rows * 768 * 8.0
        for contender, factor in (("taut", 1), ("torch", 1.8)):
            yield benchmark("norm", "layer_norm", f"{rows} x 768", "fp32", contender,
                            factor * moved / 3e10, bytes=moved, flops=rows * 768 * 8.0,
                            axes={"rows": rows})  # fmt: skip


def encoders():
    contenders = (
        ("taut fp32", 9000, 1e-9, 90.3), ("taut bf16", 17500, 4e-5, 45.2),
        ("taut w8a8", 25300, 7e-4, 23.1), ("taut w4a8-g32", 20100, 6e-3, 20.4),
        ("taut ternary", 25400, 0.31, 14.0), ("transformers bf16", 2390, 5e-5, 45.2),
        ("onnxruntime int8", 8100, 4e-3, 23.0),
    )  # fmt: skip
    for order in ("arrival", "sorted"):
        for contender, rate, loss, size in contenders:
            yield benchmark("encode", "encode", f"minilm, {order}", "mixed", contender,
                            30_000 / rate, tokens=30_000, flops=30_000 * 21.2e6, roof="bf16",
                            error=2 * loss, allowed_error=1.0, mean_cosine=1 - loss, size_mb=size,
                            axes={"scheme": contender.split()[-1], "order": order})  # fmt: skip


def document():
    """One of our records, with a fresh copy of everything."""
    benchmarks = [*attention(), *linear(), *norm(), *encoders()]
    return copy.deepcopy(
        {
            "machine_info": {
                "device": "made-up-2-cores", "cpu": "Made-up CPU", "isa": "avx512_bf16",
                "threads": 2, "torch": "2.13.0", "taut": "0.1.0", "roofs": ROOFS,
                "versions": {"torch": "2.13.0", "onnxruntime": "1.27.0"},
                "peers_missing": ["openvino", "ctranslate2"],
            },
            "commit_info": {"id": "0123456789abcdef", "dirty": False, "time": "2026-11-21T09:00:00"},
            "datetime": "2026-11-21T09:30:00+00:00",
            "benchmarks": benchmarks,
            "version": "5.3.1",
        }
    )  # fmt: skip


def scaled(document, factor, chosen=lambda extra: True):
    """The document with the times of the chosen rows multiplied."""
    changed = copy.deepcopy(document)
    for benchmark in changed["benchmarks"]:
        if chosen(benchmark["extra_info"]):
            stats = benchmark["stats"]
            for name in ("median", "iqr", "q1", "q3", "min", "max"):
                stats[name] *= factor
    return changed
