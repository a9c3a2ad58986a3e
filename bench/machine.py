"""What a record says of the machine: its name, and the roofs probed on it."""

import platform
import re
from functools import cache
from pathlib import Path

import torch

from taut._native import libraries

from . import probes
from .cases import Work


@cache
def cached_bytes() -> int:
    """Operands up to this size stay in cache between calls, at least in part: twice the last level."""
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    kib = [int(text[:-1]) for file in files if (text := file.read_text().strip()).endswith("K")]
    return 2 * max(kib, default=8 << 10) << 10


def _cpu_fields() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().split("\n\n")[0] if path.exists() else ""
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_name() -> str:
    return _cpu_fields().get("model name") or platform.processor() or platform.machine()


def _generation(fields: dict[str, str]) -> str:
    """What the model name may leave out: AMD's generation (family 25 is Zen 3 and Zen 4), of others
    whether there is AMX."""
    flags = fields.get("flags", "").split()
    if fields.get("vendor_id") != "AuthenticAMD":
        return "amx" if "amx_tile" in flags else ""
    return {"23": "zen2", "25": "zen4" if "avx512f" in flags else "zen3", "26": "zen5"}.get(
        fields.get("cpu family", ""), ""
    )


def slug(device: torch.device, threads: int) -> str:
    """As in "epyc-zen4-2-cores" or "h200": what a record's file is called."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name().replace("NVIDIA", "")
        return "-".join(re.findall(r"[a-z0-9]+", name.lower()))
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\bAMD\b|@.*", " ", cpu_name(), flags=re.I)
    words = re.findall(r"[a-z0-9]+", f"{name} {_generation(_cpu_fields())}".lower())
    return "-".join([*words, str(threads), "cores" if threads > 1 else "core"])


@cache
def describe(device: torch.device, threads: int, clock: probes.Clock) -> dict:
    """Probes the device, once per run."""
    module = libraries.module
    return {
        "device": slug(device, threads),
        "cpu": cpu_name(),
        "isa": module.active_isa() if module and device.type == "cpu" else None,
        "threads": threads,
        "roofs": probes.roofs(device, threads, clock),
    }


def share_of(
    roofs: dict[str, float],
    roof: str | None,
    memory: str,
    flops: float,
    size: float,
    seconds: float,
) -> float | None:
    """How near a call of so many operations and bytes comes to what the machine can do: the better
    of arithmetic and memory; None where neither was counted."""
    shares = [size / seconds / roofs[memory]]
    if roof in roofs:
        shares.append(flops / seconds / roofs[roof])
    return max(shares) or None


def roof_share(roofs: dict[str, float], roof: str | None, work: Work, seconds: float) -> dict:
    """What a row says of its roofs."""
    memory = "cache" if work.bytes <= cached_bytes() and "cache" in roofs else "memory"
    share = share_of(roofs, roof, memory, work.flops, work.bytes, seconds)
    return {"roof": roof, "bandwidth": memory, "roof_share": share}
