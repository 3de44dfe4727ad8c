#!/bin/sh
# Asks a running DAC for the figures of its last turns and says whether one of five limits
# is passed: a check for Nagios and its kin, for a systemd timer, or for the shell.
set -u

usage() {
    cat <<'USAGE'
usage: check_alerts.sh [options]

  error_rate  failed and incomplete turns           > 0.01, over 300 s
  ttft        p95 of the time to the first token    > 1500 ms
  latency     p95 of the latency                    > 6000 ms
  queue_wait  p95 of the wait for the pacer         > 1000 ms
  coalesce    (followers + hits) / leaders          < 10, in a burst

  --url URL            of the service (DAC_URL, or http://127.0.0.1:8000)
  --last-n N           turns to look at, 1 to 16384 (100)
  --error-rate X       limits other than the above
  --ttft-p95 MS
  --latency-p95 MS
  --queue-wait-p95 MS
  --coalesce-ratio X
  --window SECONDS     how long error_rate must be passed, and how long ago a burst
                       counts (300)
  --skip NAME          leave one of the five out; may be given again
  --state FILE         where to remember since when error_rate is passed
                       ($STATE_DIRECTORY or ~/.local/state/dac; checks that differ
                       in URL, --last-n or --error-rate have a file each)
  --timeout SECONDS    for the answer (10)
  --json               one line of JSON instead of text
  --help

A burst is found in the turns themselves: those that were asked the same in the same
thread (or stateless), and began before an earlier one of them had ended, with 11 or more
requests together. Requests with tools or Cache-Control: no-store are left out, they want
a turn of their own. Without a burst there is nothing that coalescing could have done, so
a quiet night raises no alarm.

error_rate must be passed in each look, and turns must have ended over --window: while
nobody asks, nothing is added to the evidence. Times are the service's own, from its
start, so that the clock may be set; a restart begins anew.

Exit code: 0 OK; 1 WARNING: error_rate is passed, but not for so long; 2 CRITICAL: a limit
is passed; 3 UNKNOWN: no answer, one that is not understood, no turn yet, or a wrong
option. One line with performance data.
USAGE
}

# Without figures nothing is known, whatever was known before.
unknown() {
    text=$(printf '%s' "$*" | tr '\n\r\t|"\134' '      ')
    if [ "$json" = 1 ]; then
        printf '{"status":"UNKNOWN","exit":3,"message":"%s","url":"%s"}\n' "$text" "$shown_url"
    else
        printf 'DAC UNKNOWN - %s\n' "$text"
    fi
    exit 3
}

json=0
url=${DAC_URL:-http://127.0.0.1:8000}
shown_url=
last_n=100
window=300
timeout=10
max_error_rate=0.01
max_ttft=1500
max_latency=6000
max_queue_wait=1000
min_ratio=10
skip=' '
state=

number() {
    case $2 in
    '' | . | *[!0-9.]* | *.*.*) unknown "$1 needs a number, not \"$2\"" ;;
    esac
}

for option; do
    [ "$option" != --json ] || json=1 # also for what is wrong with the others
done
while [ $# -gt 0 ]; do
    option=$1
    case $option in
    --json) ;;
    --help | -h) usage && exit 0 ;;
    --url | --last-n | --window | --timeout | --error-rate | --ttft-p95 | --latency-p95 | \
        --queue-wait-p95 | --coalesce-ratio | --skip | --state)
        [ $# -gt 1 ] || unknown "$option needs a value"
        shift
        ;;
    *) unknown "there is no option \"$option\"; --help lists them" ;;
    esac
    case $option in
    --url) url=$1 ;;
    --state) state=$1 ;;
    --last-n) last_n=$1 && number "$option" "$1" ;;
    --window) window=$1 && number "$option" "$1" ;;
    --timeout) timeout=$1 && number "$option" "$1" ;;
    --error-rate) max_error_rate=$1 && number "$option" "$1" ;;
    --ttft-p95) max_ttft=$1 && number "$option" "$1" ;;
    --latency-p95) max_latency=$1 && number "$option" "$1" ;;
    --queue-wait-p95) max_queue_wait=$1 && number "$option" "$1" ;;
    --coalesce-ratio) min_ratio=$1 && number "$option" "$1" ;;
    --skip)
        case $1 in
        error_rate | ttft | latency | queue_wait | coalesce) skip="$skip$1 " ;;
        *) unknown "--skip knows error_rate, ttft, latency, queue_wait, coalesce, not \"$1\"" ;;
        esac
        ;;
    esac
    shift
done

url=${url%/}
# Without a password, and with nothing that could end a string.
shown_url=$(printf '%s' "$url" | sed 's,//[^/@]*@,//,' | tr -cd 'A-Za-z0-9._~:/?#@&+,;=%-')
case $url in
http://?* | https://?*) ;;
*) unknown "--url begins with http:// or https://" ;;
esac
export LC_ALL=C

for program in curl awk flock; do
    command -v "$program" >/dev/null 2>&1 || unknown "$program is not installed"
done

# --- since when -----------------------------------------------------------------------------

# One line: 1 START SINCE, in the service's own times. It is replaced whole, by one at a
# time; one that is of another start, or is no such line, is as none.
if [ -z "$state" ]; then
    if [ -n "${STATE_DIRECTORY:-}" ]; then
        state=${STATE_DIRECTORY%%:*}
    elif [ -n "${XDG_STATE_HOME:-${HOME:-}}" ]; then
        state=${XDG_STATE_HOME:-$HOME/.local/state}/dac
    else
        unknown "there is no HOME and no STATE_DIRECTORY: say --state FILE"
    fi
    # Another check's "not passed" would begin this one's five minutes anew.
    other=
    [ "$last_n $max_error_rate" = '100 0.01' ] || other=-$last_n-$max_error_rate
    state=$state/check_alerts-$(printf '%s' "$shown_url" | tr -c 'A-Za-z0-9.-' _)$other.state
fi
umask 077
remembers=1
mkdir -p "$(dirname "$state")" 2>/dev/null
if { true >>"$state.lock"; } 2>/dev/null; then
    exec 9>>"$state.lock"
    flock -w 30 9 || unknown "another check holds $state.lock"
else
    remembers=0
fi
known=
if [ -f "$state" ]; then
    known=$(head -n 1 "$state" 2>/dev/null | cut -c 1-100 | tr -cd '0-9. -')
elif [ -e "$state" ]; then
    remembers=0 # what is renamed to a folder goes into it
fi

# --- asking ---------------------------------------------------------------------------------

answer=$(curl -q -sS --fail --noproxy localhost,127.0.0.1,::1 --max-filesize 65536 \
    -m "$timeout" -H 'Accept: application/json' \
    "$url/api/metrics/performance?last_n=$last_n" 2>&1) ||
    unknown "$shown_url does not answer: $(printf '%s\n' "$answer" | tail -n 1)"

# --- judging --------------------------------------------------------------------------------

# Prints four lines: the new state, the exit code, the text, the JSON. Or "?" and why not.
verdict=$(printf '%s\n' "$answer" | awk -v known="$known" -v window="$window" \
    -v max_error_rate="$max_error_rate" -v max_ttft="$max_ttft" \
    -v max_latency="$max_latency" -v max_queue_wait="$max_queue_wait" \
    -v min_ratio="$min_ratio" -v skip="$skip" -v url="$shown_url" '
    BEGIN { # as JSON writes numbers, which ".5" and "07" are not
        CONVFMT = "%.12g"
        window = "" (window + 0)
        max_error_rate = "" (max_error_rate + 0)
        max_ttft = "" (max_ttft + 0)
        max_latency = "" (max_latency + 0)
        max_queue_wait = "" (max_queue_wait + 0)
        min_ratio = "" (min_ratio + 0)
    }
    # What is understood of JSON: objects of numbers, strings without escapes, null.
    function read_json(s,    depth, key, path, i) {
        while (s != "") {
            if (match(s, /^[ \t\r\n,]+/)) {
            } else if (match(s, /^\{/)) {
                depth++
            } else if (match(s, /^\}/)) {
                delete key[depth--]
                if (depth < 0) return 0
            } else if (match(s, /^"[A-Za-z0-9_]*"[ ]*:/)) {
                key[depth] = substr(s, 2)
                sub(/".*/, "", key[depth])
            } else if (match(s, /^(-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?|null|true|false|"[^"\\]*")/)) {
                if (!(depth in key)) return 0
                path = key[1]
                for (i = 2; i <= depth; i++) path = path "." key[i]
                value[path] = substr(s, 1, RLENGTH)
            } else {
                return 0
            }
            s = substr(s, RLENGTH + 1)
        }
        return depth == 0
    }
    function is_number(path) {
        return (path in value) && value[path] ~ /^[0-9]/
    }
    function refuse(why) {
        print "?"
        print why
        exit
    }
    function short(x) { # at most three digits behind the point, no zeros at its end
        x = sprintf("%.3f", x)
        sub(/\.?0+$/, "", x)
        return x
    }
    # One of the five: state is ok, pending, firing, none or skipped.
    function judge(name, figure, shown, sign, limit, unit, state) {
        if (index(skip, " " name " ")) state = "skipped"
        if (state == "firing") {
            code = 2
            bad = bad (bad == "" ? "" : "; ") figure " " shown unit " " sign " " limit unit
        } else if (state == "pending") {
            if (code == 0) code = 1
            waiting = figure " " shown " " sign " " limit " for " short(since_s) " of " window " s"
        }
        list = list (list == "" ? "" : ",") "{\"name\":\"" name "\",\"figure\":\"" figure \
            "\",\"value\":" (shown == "" ? "null" : shown) ",\"limit\":" limit \
            ",\"state\":\"" state "\"" (name == "error_rate" ? ",\"for_s\":" short(since_s) : "") "}"
    }
    function over(x, limit) { return x + 0 > limit + 0 ? "firing" : "ok" }
    { text = text $0 "\n" }
    END {
        if (!read_json(text)) refuse("what came is not the JSON of /api/metrics/performance")
        n = split("turns error_rate ttft_ms.p95 latency_ms.p95 queue_wait_ms.p95 " \
            "coalesce.leaders coalesce.followers coalesce.hits started_us uptime_s " \
            "burst.leaders burst.followers", need, " ")
        for (i = 1; i <= n; i++)
            if (!is_number(need[i])) refuse("the answer has no number " need[i])
        if (value["turns"] + 0 == 0) refuse("no turn has ended since the service was started")
        if (!is_number("newest_age_s")) refuse("the answer has no number newest_age_s")

        newest = value["uptime_s"] - value["newest_age_s"]
        rate = value["error_rate"]
        since = newest
        rate_state = over(rate, max_error_rate)
        if (known ~ /^1 [0-9]+ -?[0-9]+(\.[0-9]+)?$/) {
            split(known, k, " ")
            if (k[2] == value["started_us"] && k[3] + 0 <= newest + 0.002) since = k[3]
        }
        since_s = 0
        if (rate_state == "firing") {
            since_s = newest - since
            if (since_s < 0) since_s = 0
            if (since_s < window + 0) rate_state = "pending"
            kept = sprintf("1 %s %.3f", value["started_us"], since)
        }

        code = 0
        judge("error_rate", "error_rate", rate, ">", max_error_rate, "", rate_state)
        judge("ttft", "ttft_ms.p95", value["ttft_ms.p95"], ">", max_ttft, " ms",
            over(value["ttft_ms.p95"], max_ttft))
        judge("latency", "latency_ms.p95", value["latency_ms.p95"], ">", max_latency, " ms",
            over(value["latency_ms.p95"], max_latency))
        judge("queue_wait", "queue_wait_ms.p95", value["queue_wait_ms.p95"], ">",
            max_queue_wait, " ms", over(value["queue_wait_ms.p95"], max_queue_wait))
        ratio = ""
        ratio_state = "none"
        if (value["burst.leaders"] + 0 > 0 && is_number("burst.age_s") &&
            value["burst.age_s"] + 0 <= window + 0) {
            ratio = short(value["burst.followers"] / value["burst.leaders"])
            ratio_state = ratio + 0 < min_ratio + 0 ? "firing" : "ok"
        }
        judge("coalesce", "coalesce ratio", ratio, "<", min_ratio, "", ratio_state)

        split("OK WARNING CRITICAL", word, " ")
        status = word[code + 1]
        figures = value["turns"] " turns, the last " short(value["newest_age_s"]) " s ago: " \
            "error_rate " rate ", p95 of ttft " short(value["ttft_ms.p95"]) " ms, latency " \
            short(value["latency_ms.p95"]) " ms, queue wait " short(value["queue_wait_ms.p95"]) \
            " ms, " (ratio == "" ? "no burst" : "coalesce ratio " ratio)
        said = bad != "" ? bad (waiting == "" ? "" : "; " waiting) : waiting != "" ? waiting : figures
        perf = "error_rate=" rate ";;" max_error_rate ";0;1" \
            " ttft_p95=" value["ttft_ms.p95"] "ms;;" max_ttft ";0" \
            " latency_p95=" value["latency_ms.p95"] "ms;;" max_latency ";0" \
            " queue_wait_p95=" value["queue_wait_ms.p95"] "ms;;" max_queue_wait ";0" \
            " coalesce_ratio=" (ratio == "" ? "U" : ratio) ";;" min_ratio ":;0" \
            " turns=" value["turns"] ";;;0"
        print kept
        print code
        print said "|" perf
        print "\"turns\":" value["turns"] ",\"newest_age_s\":" value["newest_age_s"] \
            ",\"alerts\":[" list "],\"url\":\"" url "\"}"
    }') || unknown "awk could not judge the answer"

line() {
    printf '%s\n' "$verdict" | sed -n "$1p"
}

[ "$(line 1)" != '?' ] || unknown "$(line 2)"
code=$(line 2)
said=$(line 3)
rest=$(line 4)
case $code in
0 | 1 | 2) ;;
*) unknown "awk could not judge the answer" ;;
esac

if [ "$remembers" = 1 ]; then
    { line 1 >"$state.new" && mv -f "$state.new" "$state"; } 2>/dev/null || remembers=0
fi
# What cannot be remembered cannot last five minutes.
if [ "$remembers" = 0 ] && [ "$code" != 2 ] && [ "${skip#* error_rate }" = "$skip" ]; then
    unknown "$state cannot be written, so it is not known how long error_rate is passed"
fi

case $code in
0) status=OK ;;
1) status=WARNING ;;
2) status=CRITICAL ;;
esac
if [ "$json" = 1 ]; then
    printf '{"status":"%s","exit":%s,%s\n' "$status" "$code" "$rest"
else
    printf 'DAC %s - %s | %s\n' "$status" "${said%%|*}" "${said#*|}"
fi
exit "$code"
