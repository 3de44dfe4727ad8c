#!/bin/sh
# The fan-out's figures: dacd and dac-mock on free ports, `dac-bench fit` against them, all
# in a directory that is removed at the end. docs/performance.md tells how to read them.
#
#   tools/bench-fanout.sh [BUILD] [OPTION OF dac-bench fit...]
#
# WORKERS=N (1): with one, one process sends, as the bare loop's does, and the load generator
# has a core of two for itself.
set -eu

cd "$(dirname "$0")/.."

build=build
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    build=$1
    shift
fi
dacd_pid=
mock_pid=

# Ends a process of ours and waits until it is gone.
end() {
    [ -n "$1" ] || return 0
    kill "$1" 2>/dev/null || return 0
    wait "$1" 2>/dev/null || true
}

clean_up() {
    status=$?
    trap '' INT TERM
    end "$dacd_pid"
    end "$mock_pid"
    rm -rf "$work"
    exit "$status"
}

work=$(mktemp -d "${TMPDIR:-/tmp}/dac-fanout.XXXXXX")
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

"$build/dac-mock" --listen 127.0.0.1:0 --quiet >"$work/mock" 2>"$work/mock.log" &
mock_pid=$!
n=0
until mock=$(sed -n 's/^listening http //p' "$work/mock") && [ -n "$mock" ]; do
    n=$((n + 1))
    [ "$n" -lt 100 ] || { cat "$work/mock.log"; exit 1; }
    sleep 0.1
done
port=$(/usr/bin/python3 -c '
import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
cat >"$work/dac.conf" <<CONF
[server]
listen = 127.0.0.1:$port
workers = ${WORKERS:-1}
max_connections = 20000
[store]
sqlite = $work/dac.db
[provider perplexity]
dialect = openai
base_url = http://$mock/v1
rps = 1000
burst = 1000
concurrency = 100
CONF
"$build/dacd" -c "$work/dac.conf" >"$work/dacd.log" 2>&1 &
dacd_pid=$!
n=0
until curl -fs -o /dev/null --max-time 2 "http://127.0.0.1:$port/readyz"; do
    n=$((n + 1))
    if ! kill -0 "$dacd_pid" 2>/dev/null || [ "$n" -gt 100 ]; then
        tail -n 20 "$work/dacd.log"
        exit 1
    fi
    sleep 0.1
done
"$build/dac-bench" fit --url "http://127.0.0.1:$port" --pid-of "$dacd_pid" "$@"
