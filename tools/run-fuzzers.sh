#!/bin/sh
# Runs libFuzzer programs, each for some seconds, and keeps what they learned in CORPUS.
#
#   tools/run-fuzzers.sh SECONDS CORPUS PROGRAM...
#
# A finding is shown, its input stays in CORPUS, and the exit status is 1.
set -eu

seconds=$1
corpus=$2
shift 2
bad=0
for program in "$@"; do
    name=$(basename "$program")
    mkdir -p "$corpus/$name"
    log=$corpus/$name.log
    if "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$corpus/$name-" "$corpus/$name" >"$log" 2>&1 </dev/null; then
        printf '  ok    %-28s %s inputs\n' "$name" \
            "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
    else
        bad=1
        printf '  FAIL  %s\n' "$name"
        tail -n 60 "$log" | sed 's/^/        /'
    fi
done
exit "$bad"
