#!/usr/bin/env bash
# Everything that needs a GPU, in one command, for a machine without network. Installs nothing:
#
#     bench/gpu_check.sh OUT [--stages build,test,sanitize,bench] [--python PYTHON] [--force] [--dry-run]
#
# Needs nvcc, a torch with CUDA, pytest and the build's requirements (cmake, ninja, pybind11,
# setuptools) in PYTHON. Every stage has its time limit, writes OUT/<stage>.log and ends as a line of
# OUT/stages.jsonl; a stage that passed is not run again, unless --force. The exit status is the number
# of stages that failed.
set -uo pipefail
cd "$(dirname "$0")/.."

all_stages="device build test sanitize bench"
stages=$all_stages python=${PYTHON:-python3} dry_run= force= out=
while (($#)); do
  case $1 in
    --stages) stages=${2//,/ }; shift 2 ;;
    --python) python=$2; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    --force) force=1; shift ;;
    -*) echo "gpu_check.sh: unknown option $1" >&2; exit 64 ;;
    *) out=$1; shift ;;
  esac
done
if [[ -z $out ]]; then
  echo "gpu_check.sh: OUT must be a folder, got nothing" >&2
  exit 64
fi
for stage in $stages; do
  if [[ " $all_stages " != *" $stage "* ]]; then
    echo "gpu_check.sh: stages must be among ${all_stages// /,}, got $stage" >&2
    exit 64
  fi
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

# One architecture builds in minutes. Hopper's own instructions need its "a" target.
architecture() {
  "$python" - <<'PY'
import torch

major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}" + ("a" if major in (9, 10) else ""))
PY
}

limit_of() {
  case $1 in device) echo 60 ;; build) echo 480 ;; test) echo 300 ;; sanitize) echo 540 ;; bench) echo 480 ;; esac
}

run_device() {
  nvidia-smi
  nvcc --version
  "$python" -c "import torch, taut.info; print(torch.cuda.get_device_name()); [print(f'{k}: {v}') for k, v in taut.info.report().items()]"
}
run_build() {
  TORCH_CUDA_ARCH_LIST=$(architecture) TAUT_CUDA=1 TAUT_AMX_EMULATION=0 \
    "$python" setup.py build_ext --inplace
  ln -sfn ../../triton_kernels python/taut/triton_kernels
  TAUT_CUDA_KERNELS=native "$python" -c "import taut"
}
run_test() {
  TAUT_CUDA_KERNELS=native "$python" -m pytest -q -p no:cacheprovider tests/test_cuda_library.py tests/gpu \
    --junitxml="$out/test.xml"
}
run_sanitize() {
  local tool failed=0
  for tool in memcheck racecheck synccheck; do
    echo "== $tool"
    TAUT_CUDA_KERNELS=native PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 170 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 --launch-timeout 60 \
      "$python" -m pytest -q -p no:cacheprovider tests/gpu -k small || failed=1
  done
  return $failed
}
run_bench() {
  "$python" bench/bench_attention_gpu.py --output "$out/attention_gpu.json"
}

failures=0
for stage in $stages; do
  limit=$(limit_of "$stage")
  if [[ -z $force && -z $dry_run ]] && grep -qs "\"stage\": \"$stage\", \"status\": 0" "$out/stages.jsonl"; then
    echo "$stage: passed before"
    continue
  fi
  echo "$stage: at most $limit s, log in $out/$stage.log"
  if [[ -n $dry_run ]]; then
    declare -f "run_$stage" | sed 's/^/    /'
    continue
  fi
  start=$(date +%s)
  export -f "run_$stage" architecture
  export python out
  timeout --kill-after=10 "$limit" bash -uo pipefail -ec "run_$stage" >"$out/$stage.log" 2>&1
  status=$?
  printf '{"stage": "%s", "status": %d, "seconds": %d, "commit": "%s"}\n' "$stage" "$status" \
    "$(($(date +%s) - start))" "$(git rev-parse HEAD 2>/dev/null)" >>"$out/stages.jsonl"
  echo "$stage: status $status"
  ((status == 0)) || failures=$((failures + 1))
done
exit "$failures"
