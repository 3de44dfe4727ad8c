#!/bin/sh
# The demo: a model's server, dacd in front of it, one question from 50 clients at once, then
# what it cost and what was stored. `make demo` calls it when all is built.
#
#   tools/demo.sh smollm2     a real small language model on this machine
#   tools/demo.sh mock        dac-mock in its place
#
# QUESTION='...' asks something else, CLIENTS=N has another number of clients. Ctrl-C ends all
# that was started; nothing is kept but the downloaded model.
set -eu

cd "$(dirname "$0")/.."

kind=${1:-smollm2}
clients=${CLIENTS:-50}
question=${QUESTION:-Why is the sky blue?}
build=build
python=/usr/bin/python3
server_pid=
dacd_pid=
mock_answer='{"ttft": "300ms", "tokens": 80, "gap": "30ms", "text": "This answer was written once, by a scripted provider, and is read by everyone who asked. One of the clients was the first: its worker made the call. The others found the flight under the same key and joined it; whoever came late got all of it from the first byte, and then the rest as it arrived."}'

say() {
    printf 'demo: %s\n' "$*"
}

# Ends a process of ours and waits until it is gone.
end() {
    [ -n "$1" ] || return 0
    kill "$1" 2>/dev/null || return 0
    n=0
    while kill -0 "$1" 2>/dev/null && [ "$n" -lt 100 ]; do
        sleep 0.1
        n=$((n + 1))
    done
    kill -9 "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

clean_up() {
    status=$?
    trap '' INT TERM
    end "$dacd_pid"
    end "$server_pid"
    rm -rf "$work"
    exit "$status"
}

work=$(mktemp -d "${TMPDIR:-/tmp}/dac-demo.XXXXXX")
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# wait_for NAME URL PID LOG: until the URL answers 200; shows the log's end if the process died.
wait_for() {
    n=0
    until curl -fs -o /dev/null --max-time 2 "$2"; do
        n=$((n + 1))
        if ! kill -0 "$3" 2>/dev/null || [ "$n" -gt 300 ]; then
            say "$1 did not come up; the end of its log:"
            tail -n 20 "$4"
            exit 1
        fi
        sleep 0.1
    done
}

free_ports() {
    $python -c '
import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))'
}

case $kind in
mock) ;;
*)
    if ! tools/install-deps.sh model; then
        say "no real model on this machine (the line above says why): dac-mock takes its place"
        kind=mock
    fi
    ;;
esac

ports=$(free_ports)
port=${ports% *}
model_port=${ports#* }

if [ "$kind" = mock ]; then
    model=mock-model
    what="dac-mock's counter"
    say "starting dac-mock on port $model_port"
    "$build/dac-mock" --listen "127.0.0.1:$model_port" >"$work/model.log" 2>&1 &
    server_pid=$!
    wait_for dac-mock "http://127.0.0.1:$model_port/mock/stats" "$server_pid" "$work/model.log"
    curl -fsS -o /dev/null -d "$mock_answer" "http://127.0.0.1:$model_port/mock/default"
else
    model=smollm2-135m
    what="the model's server"
    say "starting SmolLM2-135M in llama.cpp's server on port $model_port"
    .demo/llm/bin/python tools/llm_server.py --port "$model_port" --alias "$model" \
        >"$work/model.log" 2>&1 &
    server_pid=$!
    wait_for "the model's server" "http://127.0.0.1:$model_port/health" "$server_pid" \
        "$work/model.log"
fi

upstream_calls() {
    if [ "$kind" = mock ]; then
        curl -fs "http://127.0.0.1:$model_port/mock/stats" | jq .calls
    else
        grep -c launch_slot_ "$work/model.log" || true
    fi
}

cat >"$work/dac.conf" <<CONF
[server]
listen = 127.0.0.1:$port
workers = 2
[store]
sqlite = $work/dac.db
[provider local]
dialect = openai
base_url = http://127.0.0.1:$model_port/v1
models = *
CONF
say "starting dacd on port $port (2 workers, a recorder, SQLite)"
"$build/dacd" -c "$work/dac.conf" >"$work/dacd.log" 2>&1 &
dacd_pid=$!
wait_for dacd "http://127.0.0.1:$port/readyz" "$dacd_pid" "$work/dacd.log"

calls_before=$(upstream_calls)
say "$clients clients ask: $question"
echo
if ! $python tools/demo_clients.py --port "$port" --clients "$clients" --provider local \
    --model "$model" --question "$question" --result "$work/result.json"; then
    say "the end of dacd's log:"
    tail -n 20 "$work/dacd.log"
    exit 1
fi
calls=$(($(upstream_calls) - calls_before))

jq -r --arg calls "$calls" --arg what "$what" '
    def ms: if . == null then "-" else "\(. * 10 | round / 10) ms" end;
    def roles: [("leader", "follower", "hit") as $r | (.roles[$r] // 0) as $n |
        select($n > 0) | "\($n) \($r)\(if $n > 1 then "s" else "" end)"] | join(", ");
    (.usage.prompt_tokens // 0) as $p | (.usage.completion_tokens // 0) as $c |
    "",
    "  clients          \(.clients)  (\(roles))",
    "  whole answers    \(.whole)  (\(if .equal then "all the same, byte for byte" else "NOT all the same" end))",
    "  upstream calls   \($calls)  (as \($what) counted them)",
    "  first token      p50 \(.ttft_p50_ms | ms), p99 \(.ttft_p99_ms | ms)",
    "  tokens           \($p + $c) used (\($p) read, \($c) written), \((.clients - ($calls | tonumber)) * ($p + $c)) saved"
' "$work/result.json"

echo
say "what was stored (sqlite3, view turn_audit):"
echo
sqlite3 -header -column "$work/dac.db" "
    SELECT status, substr(question, 1, 20) AS question,
           substr(replace(answer, char(10), ' '), 1, 16) || '...' AS answer, followers,
           round(ttft_ms) AS ttft_ms, completion_tokens AS tokens
    FROM turn_audit"
echo
sqlite3 -header -column "$work/dac.db" "
    SELECT (SELECT count(*) FROM turns) AS turns,
           (SELECT count(*) FROM messages WHERE role = 'user') AS user_messages,
           (SELECT count(*) FROM messages WHERE role = 'assistant') AS assistant_messages"
