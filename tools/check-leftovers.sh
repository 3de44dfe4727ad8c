#!/bin/sh
# Finds what a test run left behind: processes of this tree's programs, and shared-memory
# segments that no living process outside this tree uses.
#
#   tools/check-leftovers.sh before FILE     notes the segments that are there already
#   tools/check-leftovers.sh after FILE      lists what is left; exits 1 if anything is
set -eu

what=$1
file=$2
tree=$(pwd -P)

segments() {
    find /dev/shm -maxdepth 1 \( -name 'dac*' -o -name '.dac*' \) 2>/dev/null | sort
}

# "pid name" of every process whose program is a DAC program (or the tests' Python) of this tree.
processes() {
    for p in /proc/[0-9]*; do
        exe=$(readlink "$p/exe" 2>/dev/null) || continue
        case $exe in
        "$tree"/*) printf '%s %s\n' "${p#/proc/}" "$(tr '\0' ' ' <"$p/cmdline" 2>/dev/null)" ;;
        esac
    done
}

case $what in
before) segments >"$file" ;;
after)
    bad=0
    # What was just told to stop gets a moment to be gone.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        left=$(processes)
        [ -n "$left" ] || break
        sleep 0.5
    done
    if [ -n "$left" ]; then
        printf 'left running:\n%s\n' "$left"
        bad=1
    fi
    for segment in $(segments | comm -13 "$file" -); do
        if grep -qs -F "$segment" /proc/[0-9]*/maps; then
            continue
        fi
        echo "left in shared memory: $segment"
        bad=1
    done
    exit "$bad"
    ;;
*) exit 2 ;;
esac
