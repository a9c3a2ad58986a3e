"""The wheel installs into a fresh environment and works there."""

import zipfile

import check_wheel


def test_wheel_installs_and_works_in_a_fresh_environment(tmp_path):
    wheel = check_wheel.build(tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("taut/libtaut_cpu.so", "taut/py.typed", "taut/bench/runner.py",
                   "taut/triton_kernels/attention.py"):  # fmt: skip
        assert needed in names, names
    for left_out in ("performance.py", "cuda_kernels.py", "cuda_instructions.py", "gpu_record.py",
                     "distil_binary.py", "probe_binary", "requirements.txt", "gpu_check.sh",
                     "results"):  # fmt: skip
        assert not any(f"taut/bench/{left_out}" in name for name in names), left_out
    assert any("LICENSE" in name for name in names)
    assert "torch 2.13.0" in check_wheel.check(wheel, "2.13.0", tmp_path)
