#!/bin/sh
# Builds and runs all tests, goes on after a failure, and ends with the totals.
#
#   tools/check.sh normal BUILD [PYTEST OPTION...]   programs as they ship; what is asked of the
#                                                    store, of both kinds; the shared-memory
#                                                    tests and those that kill dacd at each
#                                                    crash point are of BUILD/crash; 200
#                                                    random deaths and three runs of random
#                                                    troubles of the database, by other
#                                                    seeds each time
#   tools/check.sh asan BUILD [PYTEST OPTION...]     all in BUILD/asan, under ASan and UBSan;
#                                                    of the system tests those marked smoke
#                                                    (all of them with FULL=1)
#
# Called by `make check` and `make check-asan`; $MAKE is the make to use.
# shellcheck disable=SC2086 # $make, $build_with and $results are lists of words
set -eu

kind=$1
build=$2
shift 2
make=${MAKE:-make}
case " ${MAKEFLAGS:-}" in
*" -j"* | *--jobserver*) build_with=$make ;;
*) build_with="$make -j$(nproc)" ;;
esac
started=$(date +%s)
wrong=0

# part GOAL MAKE-ARGUMENT...
part() {
    printf '\n== %s %s\n' "$kind" "$1"
    $make --no-print-directory "$@" || wrong=1
}

case $kind in
normal)
    printf '== build\n'
    $build_with --no-print-directory "BUILD=$build" tests
    $build_with --no-print-directory "BUILD=$build/crash" CRASHPOINTS=1 tests
    results="$build/results/unit $build/crash/results/shm $build/results/system
        $build/results/postgres $build/crash/results/crash $build/results/torture
        $build/results/store-random $build/results/faults"
    rm -f $results
    part check-unit "BUILD=$build"
    part check-shm "BUILD=$build/crash" CRASHPOINTS=1
    part check-system "BUILD=$build" "PYTEST_FLAGS=$*"
    part check-postgres "BUILD=$build" "PYTEST_FLAGS=-m store $*"
    part check-crash "BUILD=$build/crash" CRASHPOINTS=1 "PYTEST_FLAGS=$*"
    part torture "BUILD=$build" KILLS=200 JOBS=2
    part check-store-random "BUILD=$build" SEEDS=3
    export FAULTS_SAMPLES="${FAULTS_SAMPLES:-3}"
    part check-faults "BUILD=$build" "PYTEST_FLAGS=$*"
    ;;
asan)
    only='-m smoke'
    [ -z "${FULL:-}" ] || only=
    reports=$PWD/$build/asan/reports
    case $build in /*) reports=$build/asan/reports ;; esac
    rm -rf "$reports"
    mkdir -p "$reports"
    chmod 1777 "$reports" # children that dropped their user report there too
    export ASAN_OPTIONS="abort_on_error=1:detect_stack_use_after_return=1:log_path=$reports/asan"
    export UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1:log_path=$reports/ubsan"
    printf '== build\n'
    ASAN_OPTIONS=detect_leaks=0 $build_with --no-print-directory "BUILD=$build/asan" SANITIZE=1 tests
    build=$build/asan
    results="$build/results/unit $build/results/shm $build/results/system"
    rm -f $results
    part check-unit "BUILD=$build" SANITIZE=1
    part check-shm "BUILD=$build" SANITIZE=1
    part check-system "BUILD=$build" SANITIZE=1 "PYTEST_FLAGS=$only $*"
    for report in "$reports"/*; do
        [ -s "$report" ] || continue
        wrong=1
        printf '\n== sanitizer report %s\n' "$report"
        head -n 60 "$report"
    done
    ;;
*)
    echo "tools/check.sh: normal or asan?" >&2
    exit 2
    ;;
esac

printf '\n== %s, %d s\n' "$kind" $(($(date +%s) - started))
cat $results 2>/dev/null || true
cat $results 2>/dev/null | awk -F '[: ,]+' -v kind="$kind" '
    { p += $2; f += $4; s += $6 }
    END { printf "total: %d passed, %d failed, %d skipped\n", p, f, s }' |
    tee "$build/results/total-$kind"
exit "$wrong"
