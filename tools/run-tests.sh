#!/bin/sh
# Runs test programs made with Check, one after the other, each with a time limit.
#
#   tools/run-tests.sh NAME RESULT_DIR PROGRAM...
#
# One line per program; a failing program's whole output is shown. The last line is
# "NAME: N passed, N failed" and is kept in RESULT_DIR/NAME. Exits 1 if anything failed.
set -eu

name=$1
results=$2
shift 2
limit=${TEST_TIMEOUT:-300}

mkdir -p "$results"
passed=0
failed=0
bad=0
for program in "$@"; do
    label=$(basename "$program")
    log=$results/$label.log
    start=$(date +%s%N)
    status=0
    timeout -k 5 "$limit" "$program" >"$log" 2>&1 </dev/null || status=$?
    took=$((($(date +%s%N) - start) / 1000000))
    # Check's own closing line: "100%: Checks: 12, Failures: 0, Errors: 0"
    sums=$(sed -n 's/^[0-9]*%: Checks: \([0-9]*\), Failures: \([0-9]*\), Errors: \([0-9]*\).*/\1 \2 \3/p' "$log" |
        awk '{ c += $1; f += $2 + $3; n++ } END { if (n) print c, f }')
    checks=${sums% *}
    wrong=${sums#* }
    if [ -z "$sums" ]; then
        checks=0
        wrong=1
        [ "$status" -ne 0 ] || status=no-summary
    elif [ "$status" -ne 0 ] && [ "$wrong" -eq 0 ]; then
        wrong=1
    fi
    good=$((checks > wrong ? checks - wrong : 0))
    passed=$((passed + good))
    failed=$((failed + wrong))
    if [ "$wrong" -eq 0 ]; then
        printf '  ok    %-28s %4d checks %6d ms\n' "$label" "$checks" "$took"
    else
        bad=1
        printf '  FAIL  %-28s %4d checks %6d ms (exit %s)\n' "$label" "$checks" "$took" "$status"
        sed 's/^/        /' "$log"
    fi
done
printf '%s: %d passed, %d failed\n' "$name" "$passed" "$failed" | tee "$results/$name"
exit "$bad"
