#!/bin/sh
# Asks one question as a stream and looks at what a stream needs to be live: its headers, no
# compression, and a ping at once, before the provider has said anything. One line for each,
# PASS or FAIL.
#
#   ./smoke_ttft.sh [--help]
#
# DAC_URL=http://HOST:PORT is what is asked (default: what DAC_CONF or /etc/dac/dac.conf listens
# on); that of a proxy in front of DAC shows whether the proxy keeps streams alive, too.
# DAC_PROVIDER, DAC_MODEL, DAC_ORG (ttft-test), DAC_API_KEY: what is asked, and as whom.
# SMOKE_PING_MS (200): the latest ping that counts as immediate.
# Exit status: 0 all passed, 1 something failed, 2 it could not be looked at.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
me=smoke
# shellcheck source=tools/ttft_lib.sh
. "$here/ttft_lib.sh"

case "${1:-}" in
'') ;;
-h | --help) show_help "$0" && exit 0 ;;
*) show_help "$0" >&2 && exit 2 ;;
esac

wrong=0

# check OK? WHAT WAS HINT
check() {
    if [ "$1" = 1 ]; then
        printf 'PASS  %s: %s\n' "$2" "$3"
    else
        printf 'FAIL  %s: %s -> %s\n' "$2" "$3" "$4"
        wrong=1
    fi
}

# is WHAT WAS WANTED HINT
is() {
    [ "$2" = "$3" ] && same=1 || same=0
    check "$same" "$1" "${2:-nothing}" "must be $3; $4"
}

begin_work
find_instance
need_answers
ping_limit=${SMOKE_PING_MS:-200}
front="what stands in front of DAC changes it, if not DAC itself (ask DAC's own port)"

thread=$(new_thread) || die "no thread could be made at $url" "see the service's log; DAC_ORG, DAC_API_KEY"
stream "$work/trace" "$thread" "Say hello. (request $nonce)${mock:+ [mock ttft=100ms tokens=3]}" || true
seen=$(read_trace "$work/trace")
status=$(field status "$seen")
[ -n "$status" ] || die "no answer to a question at $url: $(head -n 1 "$work/curl.err")" \
    "see the service's log (journalctl -u dacd)"
ping=$(field ping "$seen")
delta=$(field delta "$seen")

is "status" "$status" 200 "error $(field error "$seen"): DAC_PROVIDER, DAC_MODEL, the service's log"
is "content-type" "$(field type "$seen" | sed 's/;.*//')" text/event-stream "$front"
is "cache-control" "$(field cache "$seen" | tr -d '_')" no-cache,no-transform "$front"
is "x-accel-buffering" "$(field buffering "$seen")" no "nginx swallows it for itself unless proxy_pass_header X-Accel-Buffering is set; else: $front"
is "content-encoding" "$(field encoding "$seen")" "" "no compression: switch it off for text/event-stream (gzip_types)"
if holds "$ping" "<=" "$ping_limit"; then
    check 1 "ping" "$(shown "$ping") ms after the request"
else
    check 0 "ping" "${ping:-none} ms after the request" "must come within $ping_limit ms: \
proxy buffering, or a busy machine"
fi
# What is gathered comes all at once, unless the service says that the text was that quick.
if holds "$ping" "<" "$delta" || { [ -n "$delta" ] && holds "$(field ttft "$seen")" "<" 20; }; then
    check 1 "ping before text" "text $(shown "$delta") ms after the request"
elif [ -z "$delta" ]; then
    check 0 "ping before text" "no text came" "error $(field error "$seen"); see the service's log"
else
    check 0 "ping before text" "both at $(shown "$delta") ms" "something gathers the stream: proxy buffering"
fi
if [ -n "$(field "done" "$seen")" ]; then
    check 1 "end" "a done event"
else
    check 0 "end" "no done event" "error $(field error "$seen"); see the service's log"
fi
exit "$wrong"
