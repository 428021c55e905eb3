#!/usr/bin/env bash
# The kernels built with sanitizers, under fuzzed Programs and under several callers with teams of threads; any finding
# ends with an error. Usage: tests/sanitizers.sh [CASES]. Python and torch have no sanitizer in them: their leaks are not
# reported, and torch has one thread under the thread sanitizer, which cannot see how more of them synchronize.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
suffix=$(python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')

build() {  # NAME FLAGS...
    local name=$1 source jobs=() job
    shift
    mkdir "$folder/$name"
    for source in backends/cpu/csrc/*.cpp; do
        g++ -std=c++17 -O1 -g1 -ffp-contract=off -fPIC -pthread "$@" -c "$source" -o "$folder/$name/$(basename "$source").o" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job"; done
    g++ -shared -pthread "$@" "$folder/$name"/*.o -o "$folder/$name/_native$suffix"
}

run() {  # NAME LIBRARY MODULE ARGUMENTS...
    local name=$1 preloaded=$2
    shift 2
    LD_PRELOAD=$(g++ -print-file-name="$preloaded") MBQC_CPU_LIBRARY=$folder/$name OMP_NUM_THREADS=1 python -m "$@"
}

export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1

echo "== address and undefined behaviour"
build address -fsanitize=address,undefined -fno-sanitize-recover=all -fno-sanitize=null,object-size,pointer-overflow
run address libasan.so tests.backends.fuzz --count "${1:-400}"

echo "== threads"
build thread -fsanitize=thread
run thread libtsan.so tests.backends.fuzz --count "${1:-400}"
run thread libtsan.so tests.backends.stress --calls "${1:-400}" --torch-threads 1
