#!/bin/sh
# Explores every model here exhaustively, and checks that each variant that is broken on
# purpose is found out.
#
#   tests/model/run.sh [BUILD_DIR [MODEL...]]
#
# One line per run: states, seconds. A model that does not hold leaves its trail in
# BUILD_DIR and is shown step by step. Exits 1 if a model does not hold, was not explored to
# its end, or a broken variant was not found.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
build=${1:-build/model}
[ $# -eq 0 ] || shift
models=${*:-$(cd "$here" && printf '%s ' *.pml | sed 's/\.pml//g')}
memory_mb=1600
seconds=200
failed=0
started=$(date +%s)

for tool in spin "${CC:-cc}"; do
    command -v "$tool" >/dev/null || {
        echo "$tool is missing: apt-get install spin gcc" >&2
        exit 1
    }
done

# A broken variant is found at once: compiling it takes longer than that.
optimise=-O2

# explore MODEL NAME FLAG...: makes the checker and runs it; sets states, verdict, took.
explore() {
    model=$1
    dir=$build/$model-$2
    shift 2
    rm -rf "$dir"
    mkdir -p "$dir"
    begun=$(date +%s%N)
    mode=-DSAFETY
    run=
    if printf '%s\n' "$@" | grep -q '^-DSTALL$'; then
        mode=-DNFAIR=3
        run='-a -f'
    fi
    (
        cd "$dir"
        # shellcheck disable=SC2086 # lists of words
        spin "$@" -a "$here/$model.pml" >spin.out 2>&1 &&
            ${CC:-cc} "$optimise" -w $mode -DMEMLIM=$memory_mb -o pan pan.c &&
            timeout "$seconds" ./pan -m100000 $run >pan.out 2>&1
    ) || :
    took=$((($(date +%s%N) - begun) / 1000000))
    states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' "$dir/pan.out" 2>/dev/null |
        head -n 1)
    if ! grep -q 'errors: ' "$dir/pan.out" 2>/dev/null; then
        verdict=broke
    elif ! grep -q 'errors: 0$' "$dir/pan.out"; then
        verdict=error
    elif grep -Eq 'max search depth too small|Search not completed|memory limit|Depth limit' "$dir/pan.out"; then
        verdict=partial
    else
        verdict=holds
    fi
}

report() {
    printf '  %-5s %-34s %9s states %7d ms%s\n' "$1" "$2" "${states:-0}" "$took" "${3:+  $3}"
}

holds() {
    name=$1-$2
    explore "$@"
    if [ "$verdict" = holds ]; then
        report ok "$name"
        return
    fi
    failed=1
    report FAIL "$name" "$verdict"
    cat "$dir/spin.out"
    head -n 12 "$dir/pan.out" || :
    if [ -f "$dir/$model.pml.trail" ]; then
        shift 2
        (cd "$dir" && spin "$@" -k "$model.pml.trail" -p "$here/$model.pml" | tail -n 120)
    fi
}

found() {
    optimise=-O0
    explore "$1" "$2" "-DBROKEN_$2" ${3:+"$3"}
    optimise=-O2
    if [ "$verdict" = error ]; then
        report found "$1-$2"
    else
        failed=1
        report FAIL "$1-$2" "not found: $verdict"
    fi
}

for model in $models; do
    case $model in
    wake)
        holds wake deaths
        holds wake stalls -DSTALL
        ;;
    takeover)
        holds takeover deaths
        holds takeover heirs -DWORKERS=3 -DDEATHS=1
        ;;
    *) holds "$model" deaths ;;
    esac
    # The head of each model lists its broken variants, those of -DSTALL with "(STALL)".
    # shellcheck disable=SC2013 # names are words
    for variant in $(sed -n 's/^ \*   BROKEN_\([A-Z_]*\) .*/\1/p' "$here/$model.pml"); do
        if grep -q "^ \*   BROKEN_$variant *(STALL)" "$here/$model.pml"; then
            found "$model" "$variant" -DSTALL
        else
            found "$model" "$variant"
        fi
    done
done

if [ "$failed" -ne 0 ]; then
    echo "model: FAILED"
    exit 1
fi
echo "model: all hold, every broken variant was found ($(($(date +%s) - started)) s)"
