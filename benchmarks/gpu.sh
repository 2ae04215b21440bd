#!/usr/bin/env bash
# Runs `make gpu`: on a machine with a CUDA device, builds the kernels for it, tests them, checks them with
# compute-sanitizer and measures their speed. Needs torch with CUDA, nvcc, setuptools, cmake, ninja and pytest, but no
# network. Every stage has a time limit (8 minutes in total), and the results of a stage are kept if another one fails.
# The exit code is 1 if a stage failed, 2 if there is no CUDA device.
# Environment:
#   PYTHON  the Python interpreter (default: python3)
#   COMMIT  the commit that is measured, for a copy of the sources without git
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
mkdir -p build

if ! facts=$("$python" -c '
import torch
if not torch.cuda.is_available():
    raise SystemExit("torch finds no CUDA device")
device = torch.cuda.get_device_properties(0)
print(device.name, f"{device.major}.{device.minor}", sep="\n")' 2>&1); then
  echo "make gpu: ${facts##*$'\n'}"
  exit 2
fi
facts=$(tail -n 2 <<<"$facts")  # warnings may precede the two lines
gpu=${facts%$'\n'*} capability=${facts#*$'\n'}
results=benchmarks/results/$(tr 'A-Z ' 'a-z-' <<<"$gpu")
mkdir -p "$results"

failed=()
stage() {  # SECONDS TITLE COMMAND...
  local limit=$1 title=$2 code
  shift 2
  echo "== $title"
  timeout --kill-after=10 "$limit" "$@" && return
  code=$?
  if ((code == 124 || code == 137)); then title+=", which took longer than $limit s"; fi
  failed+=("$title")
  return 1
}

build() {
  export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$capability
  "$python" setup.py --quiet build_ext --inplace >build/kernels.log 2>&1 || { cat build/kernels.log; return 1; }
  "$python" -m danet.ops
  "$python" -c 'from danet.ops import library; raise SystemExit(library.WHY_NOT_CUDA)'
}
export -f build
export python capability

test=("$python" -m pytest -q -p no:cacheprovider -m "not long")
stage 120 "1/4  building for $gpu, compute capability $capability" bash -c build ||
  { echo "make gpu: ${failed[0]}: failed"; exit 1; }

stage 80 "2/4  tests on the device" "${test[@]}" -k cuda \
  tests/ops/test_devices.py tests/ops/test_cuda.py tests/models/test_graphs.py

# Give every tensor an allocation of its own, so that memcheck sees every access beyond it.
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    stage 35 "3/4  compute-sanitizer, $tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "${test[@]}" tests/ops/test_devices.py tests/ops/test_cuda.py \
      -k "cuda and (packets or 14x14 or stage or tiles or k3 or k5 or 64-) and (float32 or bfloat16)"
  done
else
  echo "== 3/4  skipped: compute-sanitizer is not installed"
fi

stage 160 "4/4  benchmarks of the operators" bash -o pipefail -c '"$@" | tee "$0.txt"' "$results/operators" \
  "$python" -m benchmarks.ops --device cuda --plot "$results/operators.png" --json "$results/operators.json"
stage 40 "4/4  benchmarks of the detector" bash -o pipefail -c '"$@" | tee "$0.txt"' "$results/detector" \
  "$python" -m benchmarks.detector --device cuda --dtype float16 --sizes 256x320 512x640 --batch 1 8 --baselines \
  --plot "$results/detector.png" --json "$results/detector.json"

echo
find benchmarks/results -name '*.txt' -empty -delete
echo "Results, to be committed:"
ls "$results"/* 2>/dev/null
for title in "${failed[@]}"; do echo "failed: $title"; done
exit $((${#failed[@]} > 0))
