"""The executor's cases on the GPU itself: what it takes for an instruction is what the GPU does."""

import pytest
import torch
from test_simt_wrappers import CASES

import cuda_compile
from simt import build

ON_GPU = (*CASES, "pipelines")


on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a Hopper GPU",
)


@pytest.mark.parametrize("case", ON_GPU)
def test_case_compiles_for_hopper(case, tmp_path):
    source = build.HERE / "cases" / f"{case}.cpp"
    arguments = ["-cubin", *build.gpu_flags("90a"), "-o", tmp_path / "case.cubin", source]
    cuda_compile.run_nvcc(arguments)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize(
    ("library", "case"), [(library, case) for library, cases in CASES.items() for case in cases]
)
def test_wrapper_on_gpu(library, case):
    for _ in range(3):
        seed = int(torch.randint(1 << 62, ()))
        build.call(getattr(build.load_for_gpu(library, "90a"), case), 0, seed)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("hopper", [False, True], ids=["mma", "wgmma"])
def test_matrix_product_on_gpu(hopper):
    m, n, k = 130, 72, 320
    a, b = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
    c = torch.full((m, n), float("nan"))
    function = build.load_for_gpu("pipelines", "90a").matrix_product
    build.call(function, a, b, c, m, n, k, hopper, 0, 0)
    torch.testing.assert_close(c, a.float() @ b.float().T, rtol=1e-5, atol=1e-4)
