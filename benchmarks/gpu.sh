#!/usr/bin/env bash
# Runs `make gpu`: on a machine with a CUDA device, measures the kernels, tests them and checks them with
# compute-sanitizer. The most valuable results come first, and every result is saved as soon as it exists, so that a run
# that is cut off keeps them. Uses kernels that are already built if they load, else builds them, which needs nvcc,
# setuptools, cmake and ninja. Needs torch with CUDA and pytest, but no network and no git.
# Every stage has a time limit, 8 minutes in total, and the stages after a failed one still run.
# The exit code is 1 if a stage failed, 2 if there is no CUDA device.
# Environment:
#   PYTHON  the Python interpreter (default: python3)
#   COMMIT  the commit that is measured, for a copy of the sources without git
#   OUT     a folder that also gets the results, after every stage
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

keep() {  # Copies the results to $OUT
  if [[ -n ${OUT:-} ]]; then mkdir -p "$OUT" && cp -r "$results" "$OUT/"; fi
}
trap keep EXIT

failed=()
stage() {  # SECONDS TITLE COMMAND...
  local limit=$1 title=$2 code
  shift 2
  echo "== $title"
  timeout --kill-after=10 "$limit" "$@"
  code=$?
  keep
  ((code == 0)) && return
  if ((code == 124 || code == 137)); then title+=", which took longer than $limit s"; fi
  failed+=("$title")
  return 1
}
record() {  # SECONDS TITLE NAME COMMAND...: also saves the output as NAME.txt
  local limit=$1 title=$2 name=$3
  shift 3
  stage "$limit" "$title" bash -o pipefail -c '"$@" 2>&1 | tee "$0.txt"' "$results/$name" "$@"
}

loads() { "$python" -c 'from danet.ops import library; raise SystemExit(library.WHY_NOT_CUDA)'; }
build() {
  export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$capability WARNINGS_AS_ERRORS=0
  "$python" setup.py --quiet build_ext --inplace >build/kernels.log 2>&1 || { cat build/kernels.log; return 1; }
  loads
}
export -f loads build
export python capability

if loads 2>/dev/null; then
  echo "== 1/8  the kernels are already built"
else
  stage 150 "1/8  building for $gpu, compute capability $capability" bash -c build ||
    { echo "make gpu: ${failed[0]}: failed"; exit 1; }
fi
"$python" -m danet.ops

test=("$python" -m pytest -q -p no:cacheprovider -m "not long")
record 40 "2/8  one test of each operator" smoke \
  "${test[@]}" -x tests/ops/test_devices.py \
  -k "cuda and (packets or 14x14 or stage or k3 or im2col and groups or ms_deform_attn and many)"
ops=("$python" -m benchmarks.ops --device cuda)
record 60 "3/8  the most important kernels" operators-hot "${ops[@]}" hot --json "$results/operators-hot.json"
record 45 "3/8  the detector" detector \
  "$python" -m benchmarks.detector --device cuda --dtype float16 --batch 1 8 --baselines --json "$results/detector.json"
if command -v ncu >/dev/null; then
  metrics=smsp__inst_executed.max,smsp__inst_executed.avg,smsp__issue_active.avg.pct_of_peak_sustained_active
  metrics+=,l1tex__data_pipe_lsu_wavefronts.sum,lts__t_sectors_op_red.sum,lts__t_requests_op_red.sum
  metrics+=,lts__t_sectors_op_read.sum,dram__bytes.sum,gpu__time_duration.sum
  record 50 "4/8  hardware counters" counters \
    ncu --csv --metrics "$metrics" --kernel-name 'regex:forward_kernel|backward_kernel|rep_conv|lcdc|softmax_gate' \
    --launch-count 12 "$python" -m benchmarks.hot_calls
else
  echo "== 4/8  skipped: ncu is not installed"
fi
record 60 "5/8  tests on the device" tests \
  "${test[@]}" -k cuda tests/ops/test_devices.py tests/ops/test_cuda.py tests/models/test_graphs.py
record 110 "6/8  the other cases" operators \
  "${ops[@]}" sdc rep_conv lcdc softmax_gate deform_conv ms_deform_attn \
  --plot "$results/operators.png" --json "$results/operators.json"

# Give every tensor an allocation of its own, so that memcheck sees every access beyond it.
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    record 35 "7/8  compute-sanitizer, $tool" "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "${test[@]}" tests/ops/test_devices.py tests/ops/test_cuda.py \
      -k "cuda and (packets or 14x14 or stage or tiles or k3 or k5 or 64- or ms_deform_attn and (plain or many)) and \
      (float32 or bfloat16)"
  done
else
  echo "== 7/8  skipped: compute-sanitizer is not installed"
fi
record 60 "8/8  beside torch.compile" operators-compiled \
  "${ops[@]}" compiled --json "$results/operators-compiled.json"

echo
find benchmarks/results -name '*.txt' -empty -delete
echo "Results, to be committed:"
ls "$results"/* 2>/dev/null
for title in "${failed[@]}"; do echo "failed: $title"; done
exit $((${#failed[@]} > 0))
