#!/bin/sh
# Checks what a machine can check, shows all that is wrong, and fails if anything is.
#
#   make lint      (passes $CC and $FLAGS; the argument is a folder for cppcheck's cache)
#
# layers: includes follow the order of the folders      headers: each compiles alone
# format: clang-format 14 has nothing to change         cppcheck, shellcheck: no findings
# settings: README.md lists those that there are
set -eu

cache=${1:-build/lint}
mkdir -p "$cache/cppcheck"
jobs=$(nproc)
wrong=

tracked() {
    if git rev-parse --git-dir >/dev/null 2>&1; then
        git ls-files -co --exclude-standard -- "$@" | while read -r f; do
            [ ! -f "$f" ] || echo "$f"
        done
    else
        # A source archive: the names are suffixes here.
        for pattern in "$@"; do
            find . -path ./build -prune -o -name "$pattern" -type f -print | sed 's,^\./,,'
        done
    fi
}

# step NAME COMMAND...: runs it, shows its output only if it fails.
step() {
    name=$1
    shift
    if "$@" >"$cache/$name.out" 2>&1; then
        printf '  ok    %s\n' "$name"
    else
        printf '  FAIL  %s\n' "$name"
        head -n 400 "$cache/$name.out" | sed 's/^/        /'
        lines=$(wc -l <"$cache/$name.out")
        [ "$lines" -le 400 ] || echo "        ... all $lines lines: $cache/$name.out"
        wrong="$wrong $name"
    fi
}

check_layers() {
    tracked '*.c' '*.h' | xargs tools/check-layers.sh
}

check_headers() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    tracked '*.h' | xargs -P "$jobs" -n 1 sh -c '
        printf "#include \"%s\"\n#include \"%s\"\ntypedef int lint_unit;\n" "$1" "$1" |
            ${CC:-cc} $FLAGS -Werror -fsyntax-only -x c - ||
            { echo "$1 does not compile alone, or not twice"; exit 1; }' sh
}

check_format() {
    case $(clang-format --version) in
    *"version 14."*) ;;
    *) echo "clang-format 14 is needed: apt-get install clang-format-14" && return 1 ;;
    esac
    # shellcheck disable=SC2016
    tracked '*.c' '*.h' | xargs -P "$jobs" -n 20 sh -c '
        bad=0
        for f; do
            clang-format "$f" | diff -u --label "$f" --label "$f (make format)" "$f" - || bad=1
        done
        exit $bad' sh
}

check_cppcheck() {
    tracked '*.c' >"$cache/sources"
    # System headers are left out, since cppcheck has descriptions of them; but not of this one.
    mkdir -p "$cache/include/sys"
    ln -sf "$(echo '#include <sys/queue.h>' | ${CC:-cc} -E -x c - |
        sed -n 's/^# 1 "\(.*queue.h\)".*/\1/p' | head -n 1)" "$cache/include/sys/queue.h"
    cppcheck -q -j "$jobs" --enable=warning,performance,portability --error-exitcode=1 \
        --inline-suppr --std=c11 --library=posix,gnu --template=gcc \
        --cppcheck-build-dir="$cache/cppcheck" --suppress=normalCheckLevelMaxBranches \
        --suppressions-list=tools/cppcheck-suppressions.txt '-D_Noreturn=__attribute__((noreturn))' \
        -D_GNU_SOURCE -Isrc -I. -I"$cache/include" --file-list="$cache/sources"
}

# Every setting that there is stands in README.md's table, and no other.
check_settings() {
    sed -n 's/^ *{\(SERVER\|MEMORY\|STORE\|FLIGHT\|PROVIDER\)(.*\.name = "\([a-z0-9_]*\)".*/\2/p' \
        src/config/settings.c | sort >"$cache/settings"
    # shellcheck disable=SC2016
    sed -n 's/^| `\([a-z0-9_]*\)` | .*/\1/p' README.md | sort >"$cache/settings.readme"
    [ -s "$cache/settings" ] || echo "no settings found in src/config/settings.c"
    diff -u --label "src/config/settings.c" --label "README.md" "$cache/settings" \
        "$cache/settings.readme"
}

check_shell() {
    {
        tracked '*.sh'
        grep -lE '^#!.*[/ ](ba)?sh( |$)' .ci/run 2>/dev/null || true
    } | xargs shellcheck
}

export CC FLAGS
if [ -n "$(tracked '*.c' '*.h')" ]; then
    step layers check_layers
    step headers check_headers
    step format check_format
    step cppcheck check_cppcheck
fi
step settings check_settings
step shellcheck check_shell

if [ -n "$wrong" ]; then
    echo "lint failed:$wrong"
    exit 1
fi
echo "lint: nothing found"
