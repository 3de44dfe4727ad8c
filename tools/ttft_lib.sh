# What the runbook's scripts share: which instance is meant, how it is asked, what is measured.
# Sourced by ttft_settings.sh, smoke_ttft.sh, run_ttft_suite.sh and acceptance.sh, which set
# $here (their folder) and $me (their name) first. Needs curl, awk and sed; no jq, no Node.
#
# What a stream took is read from curl's trace, which stamps each piece as it is sent or comes in;
# so it is good to about 0.1 ms and holds nothing of the start of a process.
# shellcheck shell=sh
# shellcheck disable=SC2034,SC2154 # variables of those that source this

export LC_ALL=C TZ=UTC0

TTFT_LIMIT_MS=1500
CANCEL_LIMIT_MS=300
LATENCY_LIMIT_MS=6000
QUEUE_LIMIT_MS=1000
QUEUE_ZERO_MS=50

say() {
    printf '%s: %s\n' "$me" "$*" >&2
}

# die WHAT WHAT-TO-DO: exit status 2, "not measured", is never that of a missed target.
die() {
    say "$1"
    [ -z "${2:-}" ] || printf '%s: -> %s\n' "$me" "$2" >&2
    exit 2
}

# --- the instance ----------------------------------------------------------------------

# Prints the path of one of DAC's programs.
find_program() {
    for at in "$here/../build/$1" "$(command -v "$1" || true)" "$here/../../sbin/$1" \
        "$here/../../bin/$1" "/usr/sbin/$1" "/usr/bin/$1" "/usr/local/sbin/$1" \
        "/usr/local/bin/$1"; do
        if [ -x "$at" ] && [ ! -d "$at" ]; then
            printf '%s\n' "$at"
            return 0
        fi
    done
    return 1
}

# Reads the effective configuration by `dacd -t` into $work/settings: lines of section, key and
# value, with tabs. $why says why that failed.
read_settings() {
    conf=${DAC_CONF:-/etc/dac/dac.conf}
    # In the source tree the sample is what README.md starts.
    [ -n "${DAC_CONF:-}" ] || [ -e "$conf" ] || [ ! -e "$here/../etc/dac.conf.sample" ] ||
        conf=$here/../etc/dac.conf.sample
    if ! dacd=${DACD:-$(find_program dacd)}; then
        why="no dacd found here (DACD=/path/of/dacd names one)"
        return 1
    fi
    if [ ! -e "$conf" ]; then
        why="$conf is missing (DAC_CONF=FILE names another one)"
        return 1
    fi
    if ! "$dacd" -t -c "$conf" >"$work/effective" 2>"$work/problems"; then
        why="dacd -t -c $conf: $(head -n 3 "$work/problems")"
        return 1
    fi
    awk '
        /^\[/ { section = $0; sub(/^\[/, "", section); sub(/\].*$/, "", section) }
        /^[a-z_0-9]+ *=/ {
            value = $0
            sub(/^[^=]*= */, "", value)
            if (value ~ /^"/) { sub(/^"/, "", value); sub(/".*$/, "", value) }
            else if (value ~ /^;/) value = ""
            else { sub(/[ \t]+;.*$/, "", value); sub(/[ \t]+$/, "", value) }
            printf "%s\t%s\t%s\n", section, $1, value
        }' "$work/effective" >"$work/settings"
}

# setting SECTION KEY
setting() {
    [ -s "$work/settings" ] || return 0
    awk -F '\t' -v s="$1" -v k="$2" '$1 == s && $2 == k { v = $3 } END { print v }' \
        "$work/settings"
}

# One a line.
provider_names() {
    [ -s "$work/settings" ] || return 0
    awk -F '\t' '$1 ~ /^provider / && $2 == "dialect" { print substr($1, 10) }' "$work/settings"
}

# The first TCP address that the instance listens on, as a URL.
url_of_settings() {
    setting server listen | tr ',' '\n' | sed 's/^ *//; s/ *$//' | awk '
        /^unix:/ || /^$/ { next }
        { sub(/^0\.0\.0\.0:/, "127.0.0.1:"); sub(/^\[::\]:/, "[::1]:"); sub(/^\*:/, "127.0.0.1:")
          print "http://" $0; exit }'
}

# Sets url, and by the configuration, if it can be read, what else there is to know.
find_instance() {
    why=
    : >"$work/settings"
    read_settings || : >"$work/settings"
    url=${DAC_URL:-}
    [ -n "$url" ] || url=$(url_of_settings)
    [ -n "$url" ] || url=http://127.0.0.1:8000
    url=${url%/}
    instance=${DAC_NAME:-$(setting server name)}
    org=${DAC_ORG:-ttft-test}
    provider=${DAC_PROVIDER:-$(provider_names | head -n 1)}
    model=${DAC_MODEL:-}
    base_url=$(setting "provider $provider" base_url)
    ca_file=$(setting "provider $provider" ca_file)
}

# --- asking ----------------------------------------------------------------------------

# A request of ours; what is printed is the body. With run=exec it takes the shell's place.
api() {
    ${run:-} curl -sS --noproxy '*' --max-time "${DAC_TIMEOUT:-120}" -H "x-org-id: $org" \
        -H 'content-type: application/json' \
        ${DAC_API_KEY:+-H "@$work/key"} "$@"
}

# The URL of the control interface of dac-mock, if that is what is behind the instance.
find_mock() {
    mock=
    [ "${DAC_MOCK_URL:-}" != none ] || return 0
    for at in "${DAC_MOCK_URL:-}" "$(printf '%s' "$base_url" | sed 's,^\(https*://[^/]*\).*,\1,')"; do
        [ -n "$at" ] || continue
        if mock_get "$at" stats 2>/dev/null | grep -q '"log_seq":'; then
            mock=$at
            return 0
        fi
    done
    [ -z "${DAC_MOCK_URL:-}" ] ||
        die "no dac-mock answers at DAC_MOCK_URL=$DAC_MOCK_URL" "leave it away, or correct it"
}

# mock_get URL PATH
mock_get() {
    curl -fsS --noproxy '*' --max-time 5 ${ca_file:+--cacert "$ca_file"} "$1/mock/$2"
}

# Ends with a message unless the instance answers and there is a model to ask.
need_answers() {
    command -v curl >/dev/null || die "curl is missing" "apt-get install curl"
    if ! api -o "$work/ready" -w '%{http_code}' --max-time 5 "$url/readyz" \
        >"$work/status" 2>"$work/error"; then
        die "no answer at $url: $(head -n 1 "$work/error")" \
            "is the service up (systemctl status dacd)? DAC_URL=http://HOST:PORT names another \
address${why:+; the configuration could not be read: $why}"
    fi
    status=$(cat "$work/status")
    [ "$status" = 200 ] ||
        die "$url/readyz answers $status, not 200: $(head -c 200 "$work/ready")" \
            "wait until the instance is ready; is this DAC's address?"
    find_mock
    [ -n "$model" ] || model=$(setting "provider $provider" models | tr ',' '\n' |
        sed 's/^ *//; s/ *$//' | grep -v '[][*?]' | head -n 1)
    [ -n "$model" ] || [ -z "$mock" ] || model="mock-1"
    [ -n "$model" ] ||
        die "no model to ask: provider ${provider:-?} takes any" \
            "DAC_MODEL=NAME, a model of that provider, and again"
    case $model$provider in
    *[!A-Za-z0-9._:/@+-]*) die "\"$model\" or \"$provider\" is no name" "correct DAC_MODEL, DAC_PROVIDER" ;;
    esac
    nonce=$(date +%s%N)$$
}

# Makes a thread and prints its id. Each question has one of its own, so that no history grows.
new_thread() {
    id=$(api -X POST -d '{"title":"TTFT test"}' "$url/api/threads/" 2>"$work/error" |
        sed -n 's/.*"thread_id":"\([0-9a-f-]*\)".*/\1/p')
    [ -n "$id" ] || return 1
    printf '%s\n' "$id" >>"$work/threads"
    printf '%s\n' "$id"
}

# In an org of their own, and gone from lists when all is done.
delete_threads() {
    [ -s "$work/threads" ] || return 0
    sed "s,.*,url = \"$url/api/threads/&\"," "$work/threads" >"$work/delete"
    api -o /dev/null -X DELETE -K "$work/delete" >/dev/null 2>&1 || true
    rm -f "$work/threads"
}

# question TEXT: the body of an ask.
question() {
    printf '{"role":"user","content":"%s","model":"%s"%s}' "$1" "$model" \
        "${provider:+,\"provider\":\"$provider\"}"
}

# traced FILE CURL-ARGUMENT...: a request whose trace goes to FILE, all of it there when it ends.
traced() {
    trace=$1
    shift
    api -N -o "${body:-/dev/null}" --trace-ascii "$trace" --trace-time "$@" 2>>"$work/curl.err"
}

# stream FILE THREAD TEXT
stream() {
    traced "$1" -X POST -H 'accept-encoding: gzip, br' -d "$(question "$3")" \
        "$url/api/threads/$2/messages/stream"
}

# What a trace of a stream says, as one line of name=value: status, times in ms since the request
# was sent (ping, delta, done), what `done` says (ttft, queue, latency), error, type, cache,
# buffering, encoding.
read_trace() {
    awk '
        function ms(a, t) {
            split($1, a, ":")
            t = (a[1] * 3600 + a[2] * 60 + a[3]) * 1000
            if (sent != "" && t < sent - 1000) t += 86400000
            return t
        }
        function number(name) {
            if (!match(acc, "\"" name "\":[0-9.]+")) return ""
            return substr(acc, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0
        }
        function header(line, i) {
            if (line ~ /^HTTP\/[0-9.]+ [0-9][0-9][0-9]/) { split(line, a, " "); status = a[2] }
            i = index(line, ": ")
            if (i) head[tolower(substr(line, 1, i - 1))] = substr(line, i + 2)
        }
        function event(name, i) {
            i = index(acc, "event: " name ".id: ")
            if (!i) i = index(acc, "event: " name ".data: ")
            return i
        }
        # The text of a piece is complete when the next one begins.
        function flush() {
            if (kind != "<=data," || piece == "") return
            acc = acc piece
            if (ping == "" && event("ping")) ping = at - sent
            if (delta == "" && event("delta")) delta = at - sent
            if (done == "" && event("done")) done = at - sent
            if (fault == "" && event("error")) fault = acc
            if (done == "" && length(acc) > 16384) acc = substr(acc, length(acc) - 4096)
        }
        /^[0-9][0-9]:[0-9][0-9]:[0-9][0-9]\.[0-9]+ / {
            flush()
            piece = ""
            kind = $2 $4
            at = ms()
            if (kind == "=>header," && sent == "") sent = at
            next
        }
        /^[0-9a-f]+: / {
            text = substr($0, index($0, ": ") + 2)
            if (kind == "<=header,") header(text)
            else if (kind == "<=data,") piece = piece text
        }
        function value(name, v) { gsub(/[ \t\r]/, "_", v); printf "%s=%s ", name, v }
        END {
            flush()
            if (fault != "") acc = fault
            if (fault != "" || status != 200)
                if (match(acc, /"code":"[^"]*"/)) error = substr(acc, RSTART + 8, RLENGTH - 9)
            value("status", status)
            value("ping", ping); value("delta", delta); value("done", done)
            value("ttft", number("ttft_ms")); value("queue", number("queue_wait_ms"))
            value("latency", number("latency_ms")); value("error", error)
            value("type", head["content-type"]); value("cache", head["cache-control"])
            value("buffering", head["x-accel-buffering"])
            value("encoding", head["content-encoding"])
            print ""
        }' "$1"
}

# field NAME LINE
field() {
    printf '%s\n' "$2" | sed -n "s/^\(.* \)\{0,1\}$1=\([^ ]*\) .*/\2/p"
}

# --- figures ---------------------------------------------------------------------------

# rank PERCENT: of the numbers on standard input that percentile (nearest rank); nothing of none.
rank() {
    sort -n | awk -v p="$1" '
        $1 != "" { v[++n] = $1 }
        END { if (n) { i = int((n * p + 99) / 100); print v[i < 1 ? 1 : i] } }'
}

# One decimal, rounded up, so that what is shown as kept is kept.
shown() {
    awk -v v="$1" 'BEGIN { if (v == "") { print "n/a"; exit }
        x = int(v * 10); if (x < v * 10 - 1e-9) x++; printf "%.1f\n", x / 10 }'
}

# holds VALUE OPERATOR LIMIT: false also where there is no value.
holds() {
    awk -v v="$1" -v op="$2" -v l="$3" 'BEGIN {
        if (v == "") exit 1
        if (op == "<=") exit !(v + 0 <= l + 0)
        exit !(v + 0 < l + 0) }'
}

# larger A B: nothing if one is missing
larger() {
    awk -v a="$1" -v b="$2" 'BEGIN { if (a != "" && b != "") print (a + 0 > b + 0 ? a : b) }'
}

# metric GROUP NAME < the answer of /api/metrics/performance
metric() {
    sed -n 's/.*"'"$1"'":{[^}]*"'"$2"'":\([0-9.]*\).*/\1/p'
}

# ask_distinct N: N different questions, one after the other. $work/asked gets a line of each
# (see read_trace). Sets asked, failed, ttft_p95 (ours), latency_p95, queue_p95, served_ttft_p95
# (ttft as `done` said) and first_failure.
ask_distinct() {
    : >"$work/asked"
    asked=0
    while [ "$asked" -lt "$1" ]; do
        asked=$((asked + 1))
        if thread=$(new_thread); then
            stream "$work/trace" "$thread" "Answer in one short sentence: what is the number \
$asked good for? (request $nonce-$asked)" || true
            read_trace "$work/trace" >>"$work/asked"
        else
            echo "status= error=no_thread " >>"$work/asked"
        fi
        [ ! -t 2 ] || printf '\r%s: %d of %d questions' "$me" "$asked" "$1" >&2
    done
    [ ! -t 2 ] || printf '\n' >&2
    grep -v ' done=[0-9.]' "$work/asked" >"$work/failed" || true
    failed=$(wc -l <"$work/failed")
    failed=$((failed))
    first_failure=$(head -n 1 "$work/failed")
    ttft_p95=$(sed -n 's/.* delta=\([0-9.]*\) done=[0-9.].*/\1/p' "$work/asked" | rank 95)
    ttft_p50=$(sed -n 's/.* delta=\([0-9.]*\) done=[0-9.].*/\1/p' "$work/asked" | rank 50)
    ping_p95=$(sed -n 's/.* ping=\([0-9.]*\) .* done=[0-9.].*/\1/p' "$work/asked" | rank 95)
    latency_p95=$(sed -n 's/.* done=\([0-9.]*\) .*/\1/p' "$work/asked" | rank 95)
    queue_p95=$(sed -n 's/.* queue=\([0-9.]*\) .*/\1/p' "$work/asked" | rank 95)
    served_ttft_p95=$(sed -n 's/.* ttft=\([0-9.]*\) .*/\1/p' "$work/asked" | rank 95)
}

# say_failures: what became of the questions without an answer, and what to do.
say_failures() {
    [ "$failed" -gt 0 ] || return 0
    say "$failed of $asked questions got no whole answer; the first: HTTP\
 $(field status "$first_failure"), $(field error "$first_failure")"
    say "-> the service's log says more (journalctl -u dacd); is \"$model\" a model of provider\
 ${provider:-(the first that takes it)}?"
}

# compare_metrics N: /api/metrics/performance over the last N turns against what ask_distinct
# measured. Sets metrics_ttft_p95, metrics_queue_p95, metrics_latency_p95, metrics_errors and
# compared, which is "agree" or says what does not.
compare_metrics() {
    tries=0
    while :; do
        compared=
        api "$url/api/metrics/performance?last_n=$1" >"$work/performance" 2>"$work/error" || true
        metrics_ttft_p95=$(metric ttft_ms p95 <"$work/performance")
        metrics_queue_p95=$(metric queue_wait_ms p95 <"$work/performance")
        metrics_latency_p95=$(metric latency_ms p95 <"$work/performance")
        metrics_errors=$(sed -n 's/.*"error_rate":\([0-9.e-]*\).*/\1/p' "$work/performance")
        metrics_turns=$(sed -n 's/.*"turns":\([0-9]*\).*/\1/p' "$work/performance")
        if [ -z "$metrics_ttft_p95" ] || [ -z "$metrics_queue_p95" ] || [ -z "$metrics_errors" ]; then
            compared="no figures from $url/api/metrics/performance: $(head -c 120 "$work/performance")"
        elif [ "$metrics_turns" != "$1" ]; then
            compared="the service counts $metrics_turns turns, not $1"
        else
            compared=$(awk -v own="$ttft_p95" -v said="$served_ttft_p95" -v them="$metrics_ttft_p95" \
                -v q="$queue_p95" -v mq="$metrics_queue_p95" '
                function apart(a, b) { return a > b ? a - b : b - a }
                BEGIN {
                    room = own * 0.1 > 100 ? own * 0.1 : 100
                    if (own == "" || said == "") print "nothing measured to compare with"
                    else if (apart(said, them) > 1)
                        printf "TTFT p95 is %s ms by the metrics, %s ms by the answers\n", them, said
                    else if (apart(own, them) > room)
                        printf "TTFT p95 is %s ms by the metrics, %s ms as measured here\n", them, own
                    else if (apart(q, mq) > 1)
                        printf "queue wait p95 is %s ms by the metrics, %s ms by the answers\n", mq, q
                    else print "agree"
                }')
        fi
        # A turn is counted just after its `done`.
        if [ "$compared" = agree ] || [ "$tries" -ge 10 ]; then
            break
        fi
        tries=$((tries + 1))
        sleep 0.2
    done
}

# --- a script's life -------------------------------------------------------------------

# Makes $work, which goes with the script, and with it what the script left in the service.
begin_work() {
    work=$(mktemp -d "${TMPDIR:-/tmp}/dac-ttft.XXXXXX")
    asker=
    trap end_work EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    # A key on a command line is everybody's to read; the folder is not.
    [ -z "${DAC_API_KEY:-}" ] || printf 'authorization: Bearer %s\n' "$DAC_API_KEY" >"$work/key"
}

# Ends the curl that runs beside the script, if any.
end_asker() {
    [ -n "$asker" ] || return 0
    kill "$asker" 2>/dev/null || true
    wait "$asker" 2>/dev/null || true
    asker=
}

end_work() {
    work_status=$?
    trap - EXIT
    end_asker
    [ -z "${url:-}" ] || delete_threads
    rm -rf "$work"
    exit "$work_status"
}

# show_help FILE: its head comment.
show_help() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$1"
}
