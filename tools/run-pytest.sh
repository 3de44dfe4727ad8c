#!/bin/sh
# Runs the system tests against the programs of a build folder.
#
#   tools/run-pytest.sh NAME BUILD [PYTEST OPTION...]
#
# TESTS names another folder of tests. They find the programs by DAC_BUILD, Node by PATH, its packages by NODE_PATH. The last
# line is "NAME: N passed, N failed, N skipped" and is kept in BUILD/results/NAME.
set -eu

name=$1
build=$(cd "$2" && pwd)
shift 2
mkdir -p "$build/results"
xml=$build/results/$name.xml
rm -f "$xml"

tests=${TESTS:-tests/system}
if ! ls "$tests"/test_*.py >/dev/null 2>&1; then
    echo "$name: 0 passed, 0 failed, 0 skipped" | tee "$build/results/$name"
    exit 0
fi

export DAC_BUILD="$build"
export PATH="$PWD/.venv/bin:$PATH"
export NODE_PATH="$PWD/.venv/node/node_modules"
export PYTHONDONTWRITEBYTECODE=1
status=0
.venv/bin/python -m pytest "$tests" -p no:cacheprovider -ra --junitxml="$xml" "$@" \
    </dev/null || status=$?
# Exit status 5: the options picked no test, which is no failure of a test.
[ "$status" -ne 5 ] || status=0
.venv/bin/python - "$name" "$xml" <<'PY' | tee "$build/results/$name"
import sys
import xml.etree.ElementTree as tree

name, path = sys.argv[1:]
suite = tree.parse(path).getroot().find("testsuite")
n = {k: int(suite.get(k)) for k in ("tests", "failures", "errors", "skipped")}
failed = n["failures"] + n["errors"]
print(f"{name}: {n['tests'] - failed - n['skipped']} passed, {failed} failed,"
      f" {n['skipped']} skipped")
PY
exit "$status"
