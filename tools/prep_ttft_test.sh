# Temporary limits for a measurement without queueing; to be sourced:
#
#   source prep_ttft_test.sh             (. ./prep_ttft_test.sh in dash)
#
# Says what it changes and what to do next; restore_prod_settings.sh takes it back. The work is
# done by ttft_settings.sh beside this file, in a process of its own: the shell that sources
# this keeps its variables, options, traps and folder, and gets nothing but an exit status,
# which is not 0 if the limits are not in place.
# shellcheck shell=sh disable=SC2016,SC3028,SC3054

command sh -c '
    # bash says where the sourced file is; of other shells it is among the open files.
    for at in "$3" "/proc/$PPID/fd"/*; do
        [ "$at" = "$3" ] || at=$(readlink "$at") || continue
        case $at in */"$1") at=${at%/*} ;; "$1") at=. ;; *) continue ;; esac
        [ ! -f "$at/ttft_settings.sh" ] || exec sh "$at/ttft_settings.sh" "$2"
    done
    for at in . /usr/share/dac /usr/local/share/dac; do
        [ ! -f "$at/ttft_settings.sh" ] || exec sh "$at/ttft_settings.sh" "$2"
    done
    echo "$1: no ttft_settings.sh found; change to the folder of this script first" >&2
    exit 1
' sh prep_ttft_test.sh prep "${BASH_SOURCE:-}" ||
    ! : # a failure that `set -e` leaves to who sources this, in dash too
