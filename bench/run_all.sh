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

run 33 ntk "$@"
run 5 linear_regions "$@"
run 32 search "$@"
run 14 scaling "$@"
run 10 score "$@"
