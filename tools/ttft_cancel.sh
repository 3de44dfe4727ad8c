# How long it takes until the provider sees that an answer is not wanted any more. Sourced by
# run_ttft_suite.sh and acceptance.sh, behind ttft_lib.sh.
#
# Seen in dac-mock's log, or at the upstream socket, where the provider is another one. Timed
# from the moment before the curl that cancels starts, which adds some 10 ms: the time of day in
# curl's trace is not that of other programs.
# shellcheck shell=sh
# shellcheck disable=SC2034,SC2154 # variables of those that source this

seconds_now() {
    date +%s.%N
}

# Of the running instance's processes, as "pid=1,pid=2,"; nothing where they cannot be known.
instance_pids() {
    dacctl=${DACCTL:-$(find_program dacctl)} || return 0
    "$dacctl" ${instance:+-n "$instance"} --json status 2>/dev/null | tr '{' '\n' |
        sed -n 's/.*"pid":\([0-9]*\).*/pid=\1,/p' | tr -d '\n'
}

# The instance's connections to the provider, one a line.
upstream_sockets() {
    ss -tnHp state established "( dport = :$provider_port )" 2>/dev/null |
        awk -v pids="$pids" '
            { split(pids, p, ","); mine = pids == ""
              for (i in p) if (p[i] != "" && index($0, p[i] ",")) mine = 1
              if (mine) print $3 ">" $4 }' | sort
}

# How cancelling can be seen here: sets method, and how (a sentence). Ends if it cannot.
find_cancel_method() {
    if [ -n "$mock" ]; then
        method=mock
        how="at the provider: dac-mock's log ($mock/mock/log) says when it saw the call end"
        return 0
    fi
    method=socket
    how="at the upstream socket: when ss no longer shows the connection of an instance's process\
 to $base_url as established (looked at every few ms; no other calls may run meanwhile)"
    provider_port=$(printf '%s\n' "$base_url" | sed -n 's,^https*://[^/]*:\([0-9][0-9]*\)\(/.*\)*$,\1,p')
    case $base_url in
    https:*) provider_port=${provider_port:-443} ;;
    http:*) provider_port=${provider_port:-80} ;;
    *) die "where the provider is cannot be known${why:+: $why}" \
        "run this as root with DAC_CONF=FILE, or DAC_MOCK_URL=http://HOST:PORT for a dac-mock" ;;
    esac
    command -v ss >/dev/null || die "ss is missing" "apt-get install iproute2"
    pids=$(instance_pids)
    [ -n "$pids" ] || say "the instance's processes are not known (dacctl status): any connection\
 of this machine to port $provider_port counts"
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
    until_s=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$until_s" ] || return 1
        sleep 0.02
    done
}

has_delta() {
    grep -q '^event: delta' "$work/cancel.body" 2>/dev/null || ! kill -0 "$asker" 2>/dev/null
}

# ended_at_mock TEXT SINCE: into $work/gone, when (seconds since 1970) the call with that text was
# left, and when it had come.
ended_at_mock() {
    mock_get "$mock" "log?since=$2" 2>/dev/null | awk -v text="$1" '
        index($0, "\"event\":\"request\"") && index($0, text) && match($0, /"call":[0-9]+/) {
            call = substr($0, RSTART, RLENGTH) ","
            came = match($0, /"wall":[0-9.]+/) ? substr($0, RSTART + 7, RLENGTH - 7) : 0
        }
        call && index($0, call) && /"event":"(closed|reset)_by_client"/ && match($0, /"wall":[0-9.]+/) {
            print substr($0, RSTART + 7, RLENGTH - 7), came; exit
        }' >"$work/gone"
    [ -s "$work/gone" ]
}

a_socket_is_gone() {
    upstream_sockets >"$work/sockets.now"
    seconds_now >"$work/gone"
    comm -23 "$work/sockets" "$work/sockets.now" | grep -q .
}

# cancel_once HOW NUMBER: starts a long answer and ends it while it streams, by a request to
# cancel (HOW: asked) or by leaving (left); prints what it took until the provider saw it, in ms.
cancel_once() {
    mark="$nonce-c$2"
    if [ "$method" = mock ]; then
        text="Count to 50000. (request $mark) [mock ttft=20ms tokens=50000 gap=20ms]"
        seq=$(mock_get "$mock" stats | sed -n 's/.*"log_seq":\([0-9]*\).*/\1/p')
    else
        text="Write an essay of 3000 words about the history of bridges. (request $mark)"
    fi
    thread=$(new_thread) || return 1
    rm -f "$work/cancel.body"
    asked_at=$(seconds_now)
    (run=exec body=$work/cancel.body; stream "$work/cancel.trace" "$thread" "$text") &
    asker=$!
    if ! wait_for 60 has_delta || ! kill -0 "$asker" 2>/dev/null; then
        end_asker
        if grep -q '^event: done' "$work/cancel.body" 2>/dev/null; then
            say "an answer that was to be cancelled ended before: too short"
        else
            say "an answer that was to be cancelled brought no text:\
 $(grep -A 2 '^event: error' "$work/cancel.body" | sed -n 's/^data: //p')"
        fi
        return 1
    fi
    [ "$method" = mock ] || upstream_sockets >"$work/sockets"
    if [ "$1" = asked ]; then
        turn=$(sed -n 's/^data: {"turn_id":"\([0-9a-f-]*\)".*/\1/p' "$work/cancel.body" | head -n 1)
        began=$(seconds_now)
        traced "$work/cancel.sent" -X POST -d '{}' "$url/api/turns/$turn/cancel" || true
        sent=$(read_trace "$work/cancel.sent")
        if [ "$(field status "$sent")" != 200 ]; then
            say "cancelling answered HTTP $(field status "$sent"), not 200"
            end_asker
            return 1
        fi
    else
        began=$(seconds_now)
        kill "$asker" 2>/dev/null || true
    fi
    if [ "$method" = mock ]; then
        wait_for 5 ended_at_mock "$mark" "$seq" || : >"$work/gone"
    else
        wait_for 5 a_socket_is_gone || : >"$work/gone"
    fi
    end_asker
    if [ ! -s "$work/gone" ]; then
        say "a cancelled call was not seen to end at the provider within 5 s"
        return 1
    fi
    # The call came between the question and its first text: else the clocks are not the same.
    if ! awk -v asked="$asked_at" -v t0="$began" '
        NF == 2 && ($2 < asked || $2 > t0) { exit 1 }
        { printf "%.3f\n", ($1 - t0) * 1000 }' "$work/gone"; then
        say "the clock of dac-mock is not this machine's: run this where dac-mock runs"
        return 1
    fi
}

# cancel_all N: N cancellations of each kind. Sets cancel_ms and leave_ms, the slowest of each;
# empty where one was not seen. Leaving takes the service's abandon_grace longer.
cancel_all() {
    find_cancel_method
    : >"$work/cancels"
    : >"$work/leaves"
    cancel_ms=missing
    leave_ms=missing
    i=0
    while [ "$i" -lt "$1" ]; do
        i=$((i + 1))
        cancel_once asked "$i" >>"$work/cancels" || cancel_ms=
        cancel_once left "l$i" >>"$work/leaves" || leave_ms=
    done
    [ -z "$cancel_ms" ] || cancel_ms=$(rank 100 <"$work/cancels")
    [ -z "$leave_ms" ] || leave_ms=$(rank 100 <"$work/leaves")
}
