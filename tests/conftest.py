"""Fixtures every test file may use: the CPU instruction set to run on, fresh seeds."""

import os

import pytest
import torch

# A pytest that a test starts is not a worker of this one: pytest-benchmark would not measure.
os.environ.pop("PYTEST_XDIST_WORKER", None)
if not torch.cuda.is_available():
    # Before anything imports triton: what triton defines at import would stay compiled.
    os.environ["TRITON_INTERPRET"] = "1"

import amx_emulator

amx_emulator.load()

from taut._native import available_isas, libraries  # noqa: E402

if amx_emulator.load() is not None:
    assert "amx" in available_isas() or "avx512_bf16" not in available_isas(), "loaded too late"
    if os.environ.get("TAUT_CPU_ISA") == "amx":  # which processes that tests start lack
        del os.environ["TAUT_CPU_ISA"]


def pytest_sessionstart():
    amx_emulator.start()  # after pytest's own handler of SIGILL


@pytest.fixture(params=available_isas() or ["none"])
def isa(request):
    """Runs the test once per instruction set of this machine, with that set active."""
    if request.param == "none":
        pytest.fail(f"the native CPU library is missing: {libraries.causes.get('cpu')}")
    before = libraries.module.active_isa()
    libraries.module.set_active_isa(request.param)
    yield request.param
    libraries.module.set_active_isa(before)


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    threads(1)


@pytest.fixture(autouse=True)
def fresh_seed(request):
    """New random inputs every run; the seed is printed when a test fails."""
    seed = torch.seed() % (1 << 31)
    torch.manual_seed(seed)
    print(f"torch.manual_seed({seed})")
