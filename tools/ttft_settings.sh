#!/bin/sh
# Puts temporary limits for a measurement into the env file of an instance, and takes them back.
# prep_ttft_test.sh and restore_prod_settings.sh call it; it may be run by hand, too.
#
#   ttft_settings.sh prep       limits of every provider so high that nothing waits in the queue
#   ttft_settings.sh restore    what was there before, byte for byte, mode and owner included
#   ttft_settings.sh status     says what is in place
#
# Which instance: DAC_CONF=FILE names its configuration (/etc/dac/dac.conf), and `dacd -t` tells
# the env file and the providers. Where there is no dacd to ask: DAC_ENV_FILE=FILE and
# DAC_PROVIDERS="NAME ...". DAC_TEST_RPS (1000), DAC_TEST_BURST (1000) and DAC_TEST_CONCURRENCY
# (256) are the limits; one that is higher already stays.
#
# The state is kept beside the env file E:
#   E.before-ttft-test         the file that was there: the file itself, not a copy
#   E.none-before-ttft-test    in its place, where there was no file; says "folder" if there was
#                              no folder either
#   E.edited-in-ttft-test      what somebody changed in E during the test, put aside at restore
# Every step is one rename(2) or link(2): a process that dies in between, or twice the same in a
# row, loses nothing, and E is never half. Exit status: 0 done, or nothing to do; 1 not done.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tools/ttft_lib.sh
. "$here/ttft_lib.sh"

BEGIN='# >>> temporary limits of prep_ttft_test.sh; restore_prod_settings.sh takes them back'
END='# <<< temporary limits of prep_ttft_test.sh'

case "${1:-}" in
prep | restore | status) me=$1 ;;
-h | --help)
    show_help "$0"
    exit 0
    ;;
*)
    show_help "$0" >&2
    exit 1
    ;;
esac

tell() {
    printf '%s: %s\n' "$me" "$*"
}

# fail WHAT WHAT-TO-DO
fail() {
    say "$1"
    printf '%s: -> %s\n' "$me" "$2" >&2
    exit 1
}

# Sets env_file (links followed), its folder, and what belongs to it.
find_env_file() {
    why=
    : >"$work/settings"
    if ! read_settings; then
        : >"$work/settings"
        [ -n "${DAC_ENV_FILE:-}" ] || [ "$me" != prep ] ||
            fail "$why" "put that right, or say DAC_ENV_FILE=FILE DAC_PROVIDERS=\"NAME ...\""
    fi
    env_file=${DAC_ENV_FILE:-$(setting server env_file)}
    if [ -z "$env_file" ] && [ ! -s "$work/settings" ]; then
        # A configuration that cannot be used now is no reason not to restore.
        # shellcheck disable=SC2154 # read_settings sets it
        env_file=$(sed -n 's/^[ \t]*env_file[ \t]*=[ \t]*//p' "$conf" 2>/dev/null | tail -n 1 |
            sed 's/^"\(.*\)".*$/\1/; t; s/^;.*//; s/[ \t];.*//; s/[ \t\r]*$//')
        env_file=${env_file:-/etc/dac/dac.env}
        case $env_file in
        /*) ;;
        *) env_file=$(dirname -- "$conf")/$env_file ;;
        esac
        guessed=1
        say "$why; going by $env_file"
    fi
    [ -n "$env_file" ] || fail "$conf says \"env_file =\": this instance reads no env file" \
        "give it one: [server] env_file = /etc/dac/dac.env"
    env_file=$(readlink -m -- "$env_file")
    folder=${env_file%/*}
    before=$env_file.before-ttft-test
    none=$env_file.none-before-ttft-test
    edited=$env_file.edited-in-ttft-test
    tmp=$env_file.ttft-tmp.$$
    what="$(setting server name | sed 's/..*/instance &, /')env file $env_file"
}

# One at a time; and what a process left that died goes.
lock_folder() {
    if [ ! -d "$folder" ]; then
        [ "$me" = prep ] || return 0 # nothing can be there
        mkdir -- "$folder" || fail "there is no folder $folder" "make it, or correct [server] env_file"
        made=folder
    fi
    [ -w "$folder" ] || fail "$folder may not be written by $(id -un)" \
        "do it as root (sudo -s, then source it again)"
    exec 9<"$folder"
    flock -w 10 9 || fail "somebody else is at $env_file" "wait until they are done"
    rm -f -- "$env_file".ttft-tmp.*
}

# Without the block that prep wrote.
plain() {
    sed "/^$BEGIN\$/,/^$END\$/d" "$1"
}

# Whether E is what was there before, but for the block.
unedited() {
    plain "$env_file" >"$work/now"
    [ ! -e "$before" ] || cat "$before" >"$work/then"
    [ -e "$before" ] || : >"$work/then"
    cmp -s "$work/now" "$work/then" && return 0
    echo >>"$work/then"
    cmp -s "$work/now" "$work/then"
}

# copy_of FILE: into $tmp, owner and mode included.
copy_of() {
    cp -p -- "$1" "$tmp" || fail "could not write $tmp" "is the disk full?"
    if [ "$(stat -c %u:%g:%a "$tmp")" != "$(stat -c %u:%g:%a "$1")" ]; then
        rm -f -- "$tmp"
        fail "$(id -un) cannot keep the owner of $1" "do it as root"
    fi
}

# replace FILE CONTENT LIKE: CONTENT takes FILE's place as a whole; mode and owner are those of
# the file LIKE, else 0644.
replace() {
    [ -z "$3" ] || copy_of "$3"
    if ! cat "$2" >"$tmp" || ! sync "$tmp"; then
        rm -f -- "$tmp"
        fail "could not write $tmp" "is the disk full?"
    fi
    [ -n "$3" ] || chmod 644 "$tmp"
    mv -f -- "$tmp" "$1" || fail "could not replace $1" "is it a mount point of its own?"
    sync "$folder"
}

variable_of() {
    printf '%s\n' "$1" | tr 'a-z.-' 'A-Z__'
}

# test_value CURRENT WANTED: the larger; no limit (0, as a rate) stays none.
test_value() {
    awk -v c="$1" -v w="$2" -v rate="$3" 'BEGIN {
        print (c != "" && (c + 0 > w + 0 || (rate && c + 0 == 0)) ? c : w) }'
}

# For every provider and limit a line: variable, value now, value for the test.
planned() {
    for name in $providers; do
        prefix=$(variable_of "$name")
        for limit in rps burst concurrency; do
            case $limit in
            rps) wanted=${DAC_TEST_RPS:-1000} rate=1 ;;
            burst) wanted=${DAC_TEST_BURST:-1000} rate= ;;
            *) wanted=${DAC_TEST_CONCURRENCY:-256} rate= ;;
            esac
            now=$(setting "provider $name" "$limit")
            printf '%s_%s\t%s\t%s\n' "$prefix" "$(variable_of "$limit")" "${now:-?}" \
                "$(test_value "$now" "$wanted" "$rate")"
        done
    done
}

# The limits that are in place, as `dacd -t` sees them: variable and value.
limits_now() {
    provider_names | while read -r name; do
        for limit in rps burst concurrency; do
            printf '%s_%s\t%s\n' "$(variable_of "$name")" "$(variable_of "$limit")" \
                "$(setting "provider $name" "$limit")"
        done
    done
}

say_next() {
    tell "now: systemctl reload dacd (or dacctl reload), or restart it; then $1"
}

prep() {
    providers=${DAC_PROVIDERS:-$(provider_names)}
    [ -n "$providers" ] || fail "no provider is configured" \
        "add a [provider NAME] to $conf, or say DAC_PROVIDERS=\"NAME ...\""
    for v in "${DAC_TEST_RPS:-1}" "${DAC_TEST_BURST:-1}" "${DAC_TEST_CONCURRENCY:-1}"; do
        case $v in
        *[!0-9]*) fail "\"$v\" is no limit" "DAC_TEST_RPS and the like are whole numbers" ;;
        esac
    done
    lock_folder
    planned >"$work/planned"
    tell "$what"
    others=$(cd /dev/shm && for at in dac-*; do
        [ ! -e "$at" ] || [ "$at" = "$(setting server name)" ] || printf ' %s' "$at"
    done)
    [ -z "$others" ] || [ -n "${DAC_CONF:-}${DAC_ENV_FILE:-}" ] ||
        tell "  other instances run here:$others; DAC_CONF=FILE says which is meant"
    while IFS='	' read -r variable now later; do
        if [ "$now" = "$later" ]; then
            tell "  $variable $now stays$([ "$now" != 0 ] || echo " (no limit)")"
        else
            tell "  $variable $now -> $later"
        fi
    done <"$work/planned"

    again=
    if [ -e "$before" ] || [ -e "$none" ]; then
        again=1
    elif [ -e "$env_file" ]; then
        # Some file systems know no second name.
        if ! ln -- "$env_file" "$before" 2>/dev/null; then
            copy_of "$env_file"
            sync "$tmp"
            mv -f -- "$tmp" "$before"
        fi
    else
        if ! echo "$made" >"$tmp" || ! mv -f -- "$tmp" "$none"; then
            fail "could not write $none" "do it as root"
        fi
    fi
    sync "$folder"

    like=
    if [ -e "$env_file" ]; then
        like=$env_file
        plain "$env_file" >"$work/new"
    elif [ -e "$before" ]; then
        like=$before
        plain "$before" >"$work/new"
    else
        : >"$work/new"
    fi
    [ -z "$(tail -c 1 "$work/new")" ] || echo >>"$work/new"
    {
        echo "$BEGIN"
        awk -F '\t' '{ print $1 "=" $3 }' "$work/planned"
        echo "$END"
    } >>"$work/new"
    replace "$env_file" "$work/new" "$like"

    if [ -s "$work/settings" ] && [ -z "${DAC_ENV_FILE:-}" ]; then
        : >"$work/now"
        if read_settings; then
            limits_now >"$work/now"
        fi
        if ! cut -f 1,3 "$work/planned" | cmp -s - "$work/now"; then
            restore
            fail "with these limits the configuration is not what was meant${why:+: $why}" \
                "what was there before is back; look at DAC_TEST_RPS and the like"
        fi
    fi
    if [ -n "$again" ]; then
        tell "a test was prepared before: what was there before it is still kept"
    fi
    if [ -e "$before" ]; then
        tell "what was there before is kept in $before"
    else
        tell "there was no file before: $none remembers it"
    fi
    say_next "./smoke_ttft.sh, ./run_ttft_suite.sh, and restore_prod_settings.sh in the end"
}

restore() {
    if [ ! -e "$before" ] && [ ! -e "$none" ]; then
        if [ -e "$env_file" ] && grep -qxF -- "$BEGIN" "$env_file"; then
            fail "$env_file has limits of a test, but $before is gone" \
                "take out the lines from \"# >>> temporary\" to \"# <<< temporary\" yourself"
        fi
        [ -z "$guessed" ] || fail "no test is prepared for $env_file, if that is the env file" \
            "put the configuration right, or say DAC_ENV_FILE=FILE"
        tell "$what: no test is prepared, nothing to restore"
        return 0
    fi
    if [ -e "$env_file" ] && ! unedited; then
        replace "$edited" "$env_file" "$env_file"
        tell "$env_file was edited during the test; that file is now $edited"
    fi
    if [ -e "$before" ]; then
        # Both names are one file where prep died behind its first step: nothing was changed.
        if [ "$(stat -c %d:%i "$before")" = "$(stat -c %d:%i "$env_file" 2>/dev/null)" ]; then
            rm -f -- "$before"
        else
            mv -f -- "$before" "$env_file" || fail "could not bring back $env_file" "do it as root"
        fi
        rm -f -- "$none"
        tell "$what: as it was before"
    else
        rm -f -- "$env_file"
        made=$(cat "$none")
        rm -f -- "$none"
        [ "$made" != folder ] || rmdir -- "$folder" 2>/dev/null || true
        tell "$what: gone again, as it was before"
    fi
    [ ! -d "$folder" ] || sync "$folder"
}

work=$(mktemp -d "${TMPDIR:-/tmp}/dac-ttft.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
umask 022
made=
guessed=

find_env_file
case $me in
prep) prep ;;
restore)
    lock_folder
    was_prepared=
    if [ -e "$before" ] || [ -e "$none" ]; then
        was_prepared=1
    fi
    restore
    if [ -n "$was_prepared" ]; then
        if read_settings; then
            limits_now | while IFS='	' read -r variable value; do
                tell "  $variable $value"
            done
        fi
        say_next "./check_alerts.sh"
    fi
    ;;
status)
    if [ -e "$before" ] || [ -e "$none" ]; then
        tell "$what: limits of a test are in place; restore_prod_settings.sh takes them back"
    else
        tell "$what: no test is prepared"
    fi
    ;;
esac
