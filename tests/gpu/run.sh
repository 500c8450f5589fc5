#!/bin/bash
# Check and measure on a machine with a GPU; see docs/gpu-checklist.md. It needs no network and installs nothing.
#
#   tests/gpu/run.sh [PART...]      run from the root of the repository; all parts, or some of
#                                   facts tests sanitizers models steps counters, and, only if named, small_grids compiled
#
# Every part has a limit of its own, in seconds, and none stops the next. Results go to $OUT as they come.
# Variables: PYTHON=python3, OUT=build/gpu, ARCHS=90 (compute capabilities of the build), LIMIT=120 (of a measurement),
# TEST_LIMIT=300 (of the tests, and of the sanitizers), JOBS=16 (processes that build and test).
PYTHON=${PYTHON:-python3} OUT=${OUT:-build/gpu} LIMIT=${LIMIT:-120} TEST_LIMIT=${TEST_LIMIT:-300} JOBS=${JOBS:-16}
ROOT=$PWD
case $PYTHON in */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;; esac # also from another tree
export INVFLOW_CUDA=on INVFLOW_CUDA_ARCHS=${ARCHS:-90} MAX_JOBS=$JOBS PYTHONPATH=$PWD PYTHONUNBUFFERED=1
# deterministic matrix products need the second; compiled Triton kernels stay for the next call
export CUBLAS_WORKSPACE_CONFIG=:4096:8 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/triton}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd) # also from another tree
exec > >(tee -a "$OUT/log.txt") 2>&1
failed=""

say() { echo "### $SECONDS s: $*"; }
# ended NAME CODE: remember what went wrong
ended() { [ "$2" = 0 ] || failed="$failed $1($2)"; say "$1 ended with $2"; }
# limited SECONDS COMMAND...: one that does not end when it is asked to is killed
limited() { timeout -k 10 "$@"; }

# What every other part needs: without it each would fail, or skip its tests, and take minutes to do so.
check() {
  limited 120 "$PYTHON" -c '
import importlib.util, sys
needed = {"pytest": "pytest", "pytest-xdist": "xdist", "hypothesis": "hypothesis", "Pillow": "PIL", "NumPy": "numpy"}
missing = [name for name, module in needed.items() if importlib.util.find_spec(module) is None]
if missing:
    sys.exit("%s lacks %s" % (sys.executable, ", ".join(missing)))
import torch
if not torch.cuda.is_available():
    sys.exit("torch %s finds no CUDA or ROCm device" % torch.__version__)
'
}

# extensions that can be imported and are newer than their sources
is_built() {
  "$PYTHON" -c 'import invflow._C, invflow._CUDA' 2> /dev/null || return
  for extension in invflow/_C.*so invflow/_CUDA.*so; do
    [ -z "$(find csrc cmake CMakeLists.txt setup.py -type f -newer "$extension" -print -quit 2> /dev/null)" ] || return
  done
}

build() {
  is_built && return
  limited 300 "$PYTHON" setup.py -q build_ext --inplace > "$OUT/build.txt" 2>&1
  code=$?
  [ $code = 0 ] || tail -n 20 "$OUT/build.txt"
  ended build $code
}

facts() {
  limited 30 nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit,memory.total --format=csv
  limited 30 nvcc --version | tail -2
  limited 120 "$PYTHON" -m invflow.info
}

# test_of NAME PROCESSES EXPRESSION PATH...: tests, with one configuration of every Triton kernel
test_of() {
  name=$1 processes=$2 expression=$3; shift 3
  INVFLOW_TEST_UNTUNED=1 OMP_NUM_THREADS=1 limited "$TEST_LIMIT" "$PYTHON" -m pytest -q -p no:cacheprovider -rfE \
    --tb=short --continue-on-collection-errors -m gpu -n "$processes" --maxfail 60 -k "$expression" "$@" > "$OUT/$name.txt" 2>&1
}

# Of the command line and of metrics there are no tests that need a GPU, but packages that a machine may lack.
tests() {
  kernels="tests/invflow tests/gpu/test_on_device.py tests/gpu/test_caches_on_device.py"
  models="tests/sr_models/flow/test_graphs.py tests/sr_models/flow/test_model_precision.py"
  models="$models tests/gpu/test_training_on_device.py"
  instruments="tests/benchmarks/test_gpu.py tests/benchmarks/test_models.py tests/benchmarks/test_operators.py"
  # shellcheck disable=SC2086
  {
    test_of cuda $((JOBS / 4 + 1)) "not triton" $kernels & cuda=$!
    test_of triton $((JOBS / 2)) triton $kernels & triton=$!
    test_of whole $((JOBS / 8 + 1)) "not triton" $models $instruments & whole=$!
  }
  wait $cuda; ended "tests of cuda" $?; tail -n 30 "$OUT/cuda.txt"
  wait $whole; ended "tests of models" $?; tail -n 30 "$OUT/whole.txt"
  wait $triton; ended "tests of triton" $?; tail -n 30 "$OUT/triton.txt"
}

sanitizers() {
  running=""
  for tool in memcheck racecheck synccheck; do
    # without the cache of memory, or tensors lie in the middle of a large block; other kernels than ours are left alone
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 OMP_NUM_THREADS=1 limited "$TEST_LIMIT" compute-sanitizer --tool $tool \
      --kernel-name kns=invflow4cuda --report-api-errors no --error-exitcode 9 --print-limit 20 \
      "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu --tb=short tests/invflow/test_flow_step.py \
      tests/invflow/test_ops.py -k "cuda-cuda and (undoes or shared or large or round_trip)" \
      > "$OUT/$tool.txt" 2>&1 &
    running="$running $tool:$!"
  done
  for each in $running; do wait "${each#*:}"; ended "${each%:*}" $?; done
  grep -hE "SUMMARY|passed|failed" "$OUT"/memcheck.txt "$OUT"/racecheck.txt "$OUT"/synccheck.txt
}

# measure NAME ARGUMENTS...: a benchmark of $TREE, by default this one; its figures go to NAME.json after every case
measure() {
  name=$1; shift
  cd "${TREE:-.}" || return
  PYTHONPATH=$PWD limited "$LIMIT" "$PYTHON" -m benchmarks run "$@" --device cuda --seconds $((LIMIT * 4 / 5)) --json "$OUT/$name.json"
  ended "$name" $?
  cd "$ROOT" || exit
}

models() {
  measure train models --only 'srflow train *' --rounds 4
  measure sample models --only 'srflow sample 1 *' 'srflow sample 10 *' --rounds 4
  measure many models --only 'srflow sample 1000 *' --backends published-bf16,ours-bf16-graph --rounds 2
}

steps() {
  measure steps flow_step --only '* float32 contiguous' --rounds 11
  measure steps_half flow_step --only '* bfloat16 contiguous' '* channels_last' --backends cuda --rounds 11
}

# torch.compile takes minutes.
compiled() {
  LIMIT=$((4 * LIMIT)) measure compiled models --only 'srflow train *' --rounds 4 \
    --backends published-bf16,ours-bf16-graph,published-bf16-compile,ours-bf16-compile
}

# Smaller tiles for states that leave multiprocessors idle, in a build of its own, in turn with the kernels as they are.
small_grids() {
  tree=$OUT/small_grids
  rm -rf "$tree" && mkdir "$tree" || return
  cp -r invflow benchmarks sr_models csrc cmake CMakeLists.txt setup.py pyproject.toml README.md LICENSE "$tree"
  rm -f "$tree"/invflow/_CUDA*.so
  (cd "$tree" && CUDAFLAGS=-DINVFLOW_SMALL_GRIDS limited 300 "$PYTHON" setup.py -q build_ext --inplace) \
    > "$OUT/small_grids.txt" 2>&1
  code=$?; ended "build of small_grids" $code
  [ $code = 0 ] || return
  for turn in 1 2; do
    measure "usual_grids_$turn" flow_step --only 'flow_step 16x*' --backends cuda --rounds 11
    TREE=$tree measure "small_grids_$turn" flow_step --only 'flow_step 16x*' --backends cuda --rounds 11
  done
}

counters() {
  metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,smsp__inst_executed.sum
  metrics=$metrics,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__warps_active.avg.pct_of_peak_sustained_active
  metrics=$metrics,smsp__issue_active.avg.pct_of_peak_sustained_active,smsp__sass_inst_executed_op_local_ld.sum
  metrics=$metrics,smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio
  metrics=$metrics,smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio
  metrics=$metrics,l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum,launch__registers_per_thread,launch__grid_size
  metrics=$metrics,launch__occupancy_limit_registers,launch__occupancy_limit_shared_mem,launch__waves_per_multiprocessor
  limited "$LIMIT" ncu --clock-control none --kernel-name regex:invflow4cuda --kernel-name-base mangled --metrics $metrics \
    --csv "$PYTHON" -m benchmarks once --backend cuda --seconds $((LIMIT * 2 / 3)) \
    > "$OUT/counters.csv" 2> "$OUT/counters.txt"
  code=$?
  [ $code = 0 ] || tail -n 5 "$OUT/counters.txt"
  ended counters $code; wc -l "$OUT/counters.csv"
}

parts=${*:-facts tests sanitizers models steps counters}
for part in $parts; do
  case $part in facts | tests | sanitizers | models | steps | counters | small_grids | compiled) ;;
    *) echo "run.sh: PART must be one of facts tests sanitizers models steps counters small_grids compiled, got $part"; exit 2 ;;
  esac
done
if [ "$parts" != facts ] && ! why=$(check 2>&1); then
  say "cannot run: $(echo "$why" | tail -n 1)"
  exit 2
fi
build
for part in $parts; do say "$part"; $part; done
say "end;${failed:- nothing} failed"
[ -z "$failed" ]
