#!/bin/sh
# What storing a turn costs: tools/bench/store.py with a PostgreSQL server, a dacd and a dac-mock
# of its own, all in folders that are removed at the end. docs/performance.md tells how to read it.
#
#   tools/bench-store.sh [BUILD] [OPTION OF tools/bench/store.py...]
set -eu

cd "$(dirname "$0")/.."

build=build
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    build=$1
    shift
fi
tools/install-deps.sh venv
DAC_BUILD=$build PYTHONDONTWRITEBYTECODE=1 exec .venv/bin/python tools/bench/store.py "$@"
