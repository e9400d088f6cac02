#!/bin/sh
# Every benchmark on whatever device is there, within BUDGET seconds (default 540, 9 minutes).
# usage: bench/run_all.sh [--original PATH] [--results FOLDER]
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
budget=${BUDGET:-540}

# A benchmark ends by itself at its budget; the guard is for one that hangs.
run() {
    share=$1
    name=$2
    shift 2
    seconds=$((budget * share / 100))
    timeout --kill-after=5 $((seconds + 10)) "$python" -m "bench.$name" --budget "$seconds" "$@" ||
        echo "bench.$name ended with code $?"
}

run 31 ntk --batches 72 "$@"
run 24 ntk --space darts --batches 14 "$@"
run 30 search "$@"
run 3 linear_regions "$@"
run 5 score "$@"
run 6 scaling "$@"
