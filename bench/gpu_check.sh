#!/usr/bin/env bash
# Everything that needs a GPU, in one command under 9 minutes, for a machine without network.
# Installs nothing:
#
#     bench/gpu_check.sh OUT [--stages build,test,probe,bench,sanitize] [--python PYTHON] [--force]
#                            [--dry-run]
#
# Needs nvcc (on PATH or in /usr/local/cuda), a torch with CUDA, pytest, pytest-benchmark, what taut
# depends on and its build's requirements (cmake, ninja, pybind11, setuptools) in PYTHON. Every stage
# has its time limit, writes OUT/<stage>.log and ends as a line of OUT/stages.jsonl. All of it is
# collected in OUT/gpu_check.json, a record for bench/results, and OUT/gpu_check.log. Run again for
# what failed or had no time left: a stage that passed is not repeated, unless --force, and a build or
# suite that was cut off goes on where it stopped. The exit status is the number of stages that failed.
set -uo pipefail
cd "$(dirname "$0")/.."

total=520 # seconds; collecting takes a few more
all_stages="device build test probe bench sanitize"
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
export PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PATH=$PATH:/usr/local/cuda/bin
export TAUT_CUDA_KERNELS=native # no silent way around a library that does not load

# One architecture builds in minutes. Hopper's own instructions need its "a" target.
architecture() {
  "$python" - <<'PY'
import torch

major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}" + ("a" if major in (9, 10) else ""))
PY
}

limit_of() {
  case $1 in device) echo 20 ;; build) echo 270 ;; test) echo 150 ;; probe) echo 30 ;; bench) echo 150 ;; sanitize) echo 120 ;; esac
}

run_device() {
  nvidia-smi
  nvcc --version
  "$python" -c "import torch; print(torch.__version__, torch.cuda.get_device_name())"
}
run_build() {
  TORCH_CUDA_ARCH_LIST=$(architecture) TAUT_CUDA=1 \
    "$python" setup.py build_ext --inplace
  ln -sfn ../../triton_kernels python/taut/triton_kernels
  ln -sfn ../../bench python/taut/bench
  "$python" -c "import taut.info; [print(f'{k}: {v}') for k, v in taut.info.report().items()]"
}
# A file of tests or one of its functions, whose end is a record even when its time is up: pytest
# writes it after an interrupt, which bash lets background jobs ignore.
one_test() {
  local name=${1##*/}
  name=${name/.py/}
  name=${name/::/-}
  OMP_NUM_THREADS=2 env --default-signal=INT timeout --foreground --signal=INT --kill-after=5 "$2" \
    "$python" -m pytest -q -p no:cacheprovider -rfE --tb=short "$1" \
    --junitxml="$out/test-$name.xml" >"$out/test-$name.log" 2>&1
}
# The tests of every op's native kernels, and of the Triton kernels compiled. A process per function:
# after a fault a process runs no kernel any more, and compiling takes Triton a core.
run_test() {
  local file name
  # First what compiles most.
  for file in tests/test_triton*.py tests/simt/test_simt_gpu.py tests/gpu/test_*.py; do
    for name in $(sed -n 's/^def \(test_[a-z0-9_]*\)(.*/\1/p' "$file"); do
      [[ $name == *compiles* ]] || echo "$file::$name" # which needs no GPU
    done
  done >"$out/tests.txt"
  echo tests/test_cuda_library.py >>"$out/tests.txt"
  rm -f "$out"/test-*
  xargs -P "$(nproc)" -I{} bash -c 'one_test "$1" "$2"' - {} $((limit - 15)) <"$out/tests.txt"
}
# Instruction rates: what the roofs of 1-bit and other products are.
run_probe() {
  local file name
  for file in bench/probe_*.cu; do
    name=$(basename "$file" .cu)
    [[ $name == *_sm90a && $(architecture) != 9.0a ]] && continue
    nvcc -O3 -std=c++17 -Icsrc -arch="sm_$(architecture | tr -d .)" "$file" -o "$out/$name.bin"
    "$out/$name.bin" | tee "$out/$name.txt"
  done
}
# The suite by stems, so that one that fails or has no time left takes no other along.
run_bench() {
  local stems stem failed=0
  stems=$("$python" -c "from taut.bench.command import stems; print(*stems())")
  for stem in $stems; do
    [[ -e $out/bench-$stem.json ]] && ! grep -q '"failures":' "$out/bench-$stem.json" && continue
    "$python" -c "from taut.cli import main; main()" bench "$stem" --quick \
      --json "$out/bench-$stem.json" || (($? == 2)) || failed=1 # 2: none of it runs here
  done
  compgen -G "$out/bench-*.json" && return $failed
}
run_sanitize() {
  local tool file pids=() failed=0
  for tool in memcheck racecheck synccheck; do
    for file in $(grep -l '^def test_small' tests/gpu/test_*.py); do
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 OMP_NUM_THREADS=2 compute-sanitizer --tool "$tool" \
        --error-exitcode 9 --launch-timeout 60 "$python" -m pytest -q -p no:cacheprovider "$file" \
        -k small >"$out/sanitize-$tool-$(basename "$file" .py).log" 2>&1 &
      pids+=($!)
    done
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || failed=1
  done
  tail -n 40 "$out"/sanitize-*.log
  return $failed
}

record() { # stage, status, seconds
  printf '{"stage": "%s", "status": %d, "seconds": %d, "commit": "%s"}\n' "$1" "$2" "$3" \
    "$(git rev-parse HEAD 2>/dev/null)" >>"$out/stages.jsonl"
  echo "$1: status $2"
}

[[ -n $force && -z $dry_run && " $stages " == *" bench "* ]] && rm -f "$out"/bench-*.json
failures=0 begin=$SECONDS
for stage in $stages; do
  limit=$(limit_of "$stage")
  if [[ -z $force && -z $dry_run ]] && grep -qs "\"stage\": \"$stage\", \"status\": 0" "$out/stages.jsonl"; then
    echo "$stage: passed before"
    continue
  fi
  if [[ -n $dry_run ]]; then
    echo "$stage: at most $limit s, log in $out/$stage.log"
    declare -f "run_$stage" | sed 's/^/    /'
    continue
  fi
  left=$((total - (SECONDS - begin)))
  ((limit > left)) && limit=$left
  if ((limit < 10)); then
    record "$stage" 124 0
    echo "$stage: no time left; run again"
    failures=$((failures + 1))
    continue
  fi
  echo "$stage: at most $limit s, log in $out/$stage.log"
  start=$SECONDS
  export -f "run_$stage" architecture one_test
  export python out limit
  timeout --kill-after=5 "$limit" bash -O nullglob -uo pipefail -ec "run_$stage" \
    >"$out/$stage.log" 2>&1
  status=$?
  record "$stage" "$status" $((SECONDS - start))
  ((status == 0)) || failures=$((failures + 1))
done
[[ -n $dry_run ]] || python3 bench/gpu_record.py "$out" || failures=$((failures + 1))
exit "$failures"
