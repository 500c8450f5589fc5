#!/bin/bash
# Check and measure on a machine with a GPU; see docs/gpu-checklist.md. It needs no network and installs nothing.
#
#   tests/gpu/run.sh [PART...]      run from the root of the repository; all parts, or some of
#                                   facts tests sanitizers models steps counters
#
# Every part has a limit of its own, in seconds, and none stops the next. Results go to $OUT as they come.
# Variables: PYTHON=python3, OUT=build/gpu, ARCHS=90 (compute capabilities of the build), LIMIT=120 (of a measurement),
# TEST_LIMIT=300 (of the tests, and of the sanitizers), JOBS=16 (processes that build and test).
PYTHON=${PYTHON:-python3} OUT=${OUT:-build/gpu} LIMIT=${LIMIT:-120} TEST_LIMIT=${TEST_LIMIT:-300} JOBS=${JOBS:-16}
export INVFLOW_CUDA=on INVFLOW_CUDA_ARCHS=${ARCHS:-90} MAX_JOBS=$JOBS PYTHONPATH=$PWD PYTHONUNBUFFERED=1
# deterministic matrix products need the second; compiled Triton kernels stay for the next call
export CUBLAS_WORKSPACE_CONFIG=:4096:8 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/triton}
mkdir -p "$OUT"
exec > >(tee -a "$OUT/log.txt") 2>&1
failed=""

say() { echo "### $SECONDS s: $*"; }
# ended NAME CODE: remember what went wrong
ended() { [ "$2" = 0 ] || failed="$failed $1($2)"; say "$1 ended with $2"; }

build() {
  "$PYTHON" -c 'import invflow._C, invflow._CUDA' 2> /dev/null && return
  timeout 300 "$PYTHON" setup.py -q build_ext --inplace > "$OUT/build.txt" 2>&1
  ended build $?
}

facts() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit,memory.total --format=csv
  nvcc --version | tail -2
  "$PYTHON" -m invflow.info
}

# test_of NAME PROCESSES EXPRESSION: the tests of a backend, each with one configuration of every Triton kernel
test_of() {
  INVFLOW_TEST_UNTUNED=1 OMP_NUM_THREADS=1 timeout "$TEST_LIMIT" "$PYTHON" -m pytest -q -p no:cacheprovider -rfE \
    --tb=short -m gpu -n "$2" --maxfail 60 -k "$3" tests/invflow tests/gpu/test_on_device.py > "$OUT/$1.txt" 2>&1
}

tests() {
  test_of cuda $((JOBS / 3 + 1)) "not triton and not takes_minutes" & cuda=$!
  test_of triton $((JOBS / 2 + 1)) triton & triton=$!
  wait $cuda; ended "tests of cuda" $?; tail -n 30 "$OUT/cuda.txt"
  wait $triton; ended "tests of triton" $?; tail -n 30 "$OUT/triton.txt"
}

sanitizers() {
  running=""
  for tool in memcheck racecheck synccheck; do
    # without the cache of memory, or tensors lie in the middle of a large block; other kernels than ours are left alone
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 OMP_NUM_THREADS=1 timeout "$TEST_LIMIT" compute-sanitizer --tool $tool \
      --kernel-name kns=invflow4cuda --report-api-errors no --error-exitcode 9 --print-limit 20 \
      "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu --tb=short tests/invflow/test_flow_step.py \
      tests/invflow/test_ops.py -k "cuda-cuda and (undoes or shared or large or round_trip)" \
      > "$OUT/$tool.txt" 2>&1 &
    running="$running $tool:$!"
  done
  for each in $running; do wait "${each#*:}"; ended "${each%:*}" $?; done
  grep -hE "SUMMARY|passed|failed" "$OUT"/memcheck.txt "$OUT"/racecheck.txt "$OUT"/synccheck.txt
}

# measure NAME ARGUMENTS...: a benchmark; its figures go to NAME.json after every case
measure() {
  name=$1; shift
  timeout "$LIMIT" "$PYTHON" -m benchmarks run "$@" --device cuda --seconds $((LIMIT * 4 / 5)) --json "$OUT/$name.json"
  ended "$name" $?
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

counters() {
  metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,smsp__inst_executed.sum
  metrics=$metrics,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__warps_active.avg.pct_of_peak_sustained_active
  metrics=$metrics,smsp__issue_active.avg.pct_of_peak_sustained_active,smsp__sass_inst_executed_op_local_ld.sum
  metrics=$metrics,smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio
  metrics=$metrics,smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio
  metrics=$metrics,l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum,launch__registers_per_thread,launch__grid_size
  metrics=$metrics,launch__occupancy_limit_registers,launch__occupancy_limit_shared_mem,launch__waves_per_multiprocessor
  timeout "$LIMIT" ncu --clock-control none --kernel-name regex:invflow4cuda --kernel-name-base mangled --metrics $metrics \
    --csv "$PYTHON" -m benchmarks once --backend cuda > "$OUT/counters.csv" 2> "$OUT/counters.txt"
  ended counters $?; wc -l "$OUT/counters.csv"
}

parts=${*:-facts tests sanitizers models steps counters}
for part in $parts; do
  case $part in facts | tests | sanitizers | models | steps | counters) ;;
    *) echo "run.sh: PART must be one of facts tests sanitizers models steps counters, got $part"; exit 2 ;;
  esac
done
build
for part in $parts; do say "$part"; $part; done
say "end;${failed:- nothing} failed"
[ -z "$failed" ]
