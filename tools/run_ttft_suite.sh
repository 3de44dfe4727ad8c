#!/bin/sh
# Measures what phase 1 is accepted by: time to first token, cancelling, queue wait; compares
# with the service's own metrics; prints three lines with PASS or FAIL and writes the figures to
# PHASE1_GO_NO_GO.md in this folder.
#
#   ./run_ttft_suite.sh [--help]
#
# To be run between prep_ttft_test.sh and restore_prod_settings.sh, on an instance that nobody
# else asks meanwhile. It asks DAC_TTFT_N (40) different questions, one after the other, each in
# a thread of its own, and cancels DAC_CANCEL_N (5) long answers by request and as many by
# leaving. A provider that is paid for is paid for these.
#
# DAC_URL, DAC_CONF, DAC_PROVIDER, DAC_MODEL, DAC_ORG (ttft-test), DAC_API_KEY: see
# smoke_ttft.sh. DAC_MOCK_URL: where dac-mock's control is (default: looked for behind the
# provider's base_url; "none": not used). DAC_REPORT: another file to write.
# Exit status: 0 all kept, 1 a target was missed, 2 it could not be measured.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
me=suite
# shellcheck source=tools/ttft_lib.sh
. "$here/ttft_lib.sh"
# shellcheck source=tools/ttft_cancel.sh
. "$here/ttft_cancel.sh"

case "${1:-}" in
'') ;;
-h | --help) show_help "$0" && exit 0 ;;
*) show_help "$0" >&2 && exit 2 ;;
esac

questions=${DAC_TTFT_N:-40}
cancels=${DAC_CANCEL_N:-5}
report=${DAC_REPORT:-PHASE1_GO_NO_GO.md}

for n in "$questions" "$cancels"; do
    case $n in
    '' | *[!0-9]* | 0*) die "\"$n\" is no number of requests" "DAC_TTFT_N and DAC_CANCEL_N are whole, from 1" ;;
    esac
done

begin_work
# Of ":" dash would make a death of its own.
{ [ ! -d "$report" ] && true >"$report.tmp"; } 2>/dev/null ||
    die "$report cannot be written in $(pwd)" "change to another folder, or DAC_REPORT=/PATH/FILE"
rm -f "$report.tmp" "$report" # an old one must not pass for this run's
find_instance
need_answers
started=$(date '+%Y-%m-%d %H:%M:%S UTC')
say "asking $questions questions at $url (model $model)"
ask_distinct "$questions"
say_failures
compare_metrics "$asked"
say "cancelling $cancels answers by request, $cancels by leaving"
cancel_all "$cancels"

ttft_ok=FAIL
[ "$failed" -gt 0 ] || ! holds "$ttft_p95" "<=" "$TTFT_LIMIT_MS" || ttft_ok=PASS
cancel_ok=FAIL
! holds "$cancel_ms" "<" "$CANCEL_LIMIT_MS" || cancel_ok=PASS
queue_worst=$(larger "$queue_p95" "$metrics_queue_p95")
queue_ok=FAIL
! holds "$queue_worst" "<" "$QUEUE_ZERO_MS" || queue_ok=OK
# The metrics decide like a target: what alerts and dashboards show must be what clients see.
metrics_ok=FAIL
[ "$compared" != agree ] || metrics_ok=PASS

lines() {
    printf 'TTFT (streaming) p95: %s ms (target ≤ 1,500 ms) — %s\n' "$(shown "$ttft_p95")" "$ttft_ok"
    printf 'Cancel latency: %s ms (target < 300 ms) — %s\n' "$(shown "$cancel_ms")" "$cancel_ok"
    printf 'Queue wait p95 (TTFT run): %s ms — %s (%s)\n' "$(shown "$queue_worst")" "$queue_ok" \
        "$([ "$queue_ok" = OK ] && echo '~0' || echo 'not ~0')"
}

verdict=GO
case "$ttft_ok $cancel_ok $queue_ok $metrics_ok" in
*FAIL*) verdict=NO-GO ;;
esac

row() {
    printf '| %s | %s | %s | %s |\n' "$@"
}

write_report() {
    echo "# Phase 1: $verdict"
    echo
    echo '```'
    lines
    echo '```'
    echo
    echo "| figure | measured | target | result |"
    echo "|---|---|---|---|"
    row "TTFT p95, streaming" "$(shown "$ttft_p95") ms" "≤ 1,500 ms" "$ttft_ok"
    row "TTFT p50, streaming" "$(shown "$ttft_p50") ms" "" ""
    row "first ping p95" "$(shown "$ping_p95") ms" "" ""
    row "latency p95, to \`done\`" "$(shown "$latency_p95") ms" "" ""
    row "questions without a whole answer" "$failed of $asked" "0" \
        "$([ "$failed" -eq 0 ] && echo PASS || echo FAIL)"
    row "cancel by request, slowest of $cancels" "$(shown "$cancel_ms") ms" "< 300 ms" "$cancel_ok"
    row "client leaves, slowest of $cancels (the service's abandon_grace included)" \
        "$(shown "$leave_ms") ms" "" ""
    row "queue wait p95, by the answers" "$(shown "$queue_p95") ms" "~0 (< $QUEUE_ZERO_MS ms)" "$queue_ok"
    row "queue wait p95, by the metrics" "$(shown "$metrics_queue_p95") ms" "the same" "$metrics_ok"
    row "TTFT p95, by the metrics" "$(shown "$metrics_ttft_p95") ms" "as measured" "$metrics_ok"
    row "latency p95, by the metrics" "$(shown "$metrics_latency_p95") ms" "" ""
    row "error rate, by the metrics" "${metrics_errors:-n/a}" "" ""
    echo
    [ "$metrics_ok" = PASS ] || printf 'The metrics do not agree: %s.\n\n' "$compared"
    [ "$failed" -eq 0 ] || printf 'The first question without an answer: HTTP %s, %s.\n\n' \
        "$(field status "$first_failure")" "$(field error "$first_failure")"
    echo "## How it was measured"
    echo
    echo "- Begun $started, ended $(date '+%Y-%m-%d %H:%M:%S UTC') on $(uname -n)."
    echo "- Version: $version. Instance: ${instance:-unknown} at $url."
    echo "- Provider: ${provider:-by the model}${mock:+ (dac-mock)}, model $model."
    echo "- TTFT: $asked different questions, one after the other, each in a thread of its own;"
    echo "  from the request's first byte sent to the first \`delta\` event, by curl's trace; a ping"
    echo "  does not count. p95 is nearest-rank: a value that occurred."
    echo "- Cancel: from the moment before curl starts, which counts, until it is seen $how."
    echo "- Metrics: \`/api/metrics/performance?last_n=$asked\` right after the questions. TTFT there"
    echo "  must be what \`done\` said within 1 ms, and what was measured within 100 ms or a tenth."
}

version=
[ -z "${dacd:-}" ] || version=$("$dacd" -V 2>/dev/null || true)
version=${version:-unknown (no dacd here to ask)}
write_report >"$report.tmp"
mv -f "$report.tmp" "$report"
lines
if [ "$metrics_ok" = FAIL ]; then
    say "the metrics do not agree: $compared"
    say "-> did others ask at the same time? Run it again on a quiet instance"
fi
[ "$ttft_ok" = PASS ] || say "-> slow first tokens: see docs/runbook.md, \"TTFT\"; limits in place?"
[ "$queue_ok" = OK ] || say "-> calls waited for the provider's limits: source prep_ttft_test.sh, reload or restart, again"
[ "$cancel_ok" = PASS ] || say "-> cancelling: see docs/runbook.md; the provider must see the end of a call"
say "$verdict, written to $report"
[ "$verdict" = GO ]
