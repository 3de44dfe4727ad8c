# Takes back what prep_ttft_test.sh changed, byte for byte; to be sourced:
#
#   source restore_prod_settings.sh      (. ./restore_prod_settings.sh in dash)
#
# Says what is in place then and what to do next. Where nothing is to be taken back it says so
# and succeeds. How it leaves the shell alone: see prep_ttft_test.sh.
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
' sh restore_prod_settings.sh restore "${BASH_SOURCE:-}" ||
    ! : # a failure that `set -e` leaves to who sources this, in dash too
