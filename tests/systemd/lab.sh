#!/bin/bash
# Boots a real Debian systemd to test the service and its package with, on a machine whose own
# PID 1 is something else (CI runners, containers, sandboxes). README.md says why it is made
# like this.
#
# usage: lab.sh check                       can this machine do it? 0 yes, 77 no
#        lab.sh create [DEB|PACKAGE]...     make a fresh tree, install these in it
#        lab.sh boot [NSPAWN-OPTION]...     start systemd in it, wait until it is up
#        lab.sh run CMD [ARG]...            run CMD inside as root; exit status is CMD's
#        lab.sh install DEB|PACKAGE...      apt-get install, booted or not
#        lab.sh push SRC DEST               copy a file, or a folder's contents, inside
#        lab.sh pull SRC DEST               and out
#        lab.sh stop                        shut down; no process, mount, cgroup remains
#        lab.sh destroy [--all]             stop, remove the tree (--all: the cache too)
#
# LAB_DIR       scratch folder, required; one lab per folder, any number of folders
# LAB_CACHE     keeps the base tree's tarball              (default: cache, in the above)
# LAB_PACKAGES  more packages for the base tree            (part of the cache's key)
# LAB_SUITE     Debian release                             (default: this machine's)
# LAB_SOURCES   apt sources file for the base tree         (default: this machine's,
#                       or with another SUITE Debian's own)
# LAB_TIMEOUT   seconds for each boot, run, install, stop  (default: 120)
# LAB_LIFETIME  seconds after which a lab ends by itself   (default: 3600)
# LAB_OWNER     process id: the lab ends by itself when that process is gone
# LAB_NETWORK   private (a loopback of its own; default) or host
# LAB_REQUIRE   1: a machine that can't is a failure (1), not a skip (77)
#
# exit status: 0 ok, 1 failed, 2 usage, 77 this machine can't do it, 124 out of time.
# needs: root; the Debian packages mmdebstrap, systemd-container, util-linux, zstd.

# Inner shells expand what is quoted; A && B || C and a limit of a subshell's own are meant.
# shellcheck disable=SC1091,SC2015,SC2016,SC2030,SC2031,SC2094
set -uo pipefail

say()  { echo "lab: $*" >&2; }
die()  { say "$*"; exit 1; }
skip() { say "cannot run here: $*"; [ "${LAB_REQUIRE:-0}" = 1 ] && exit 1; exit 77; }
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# -ge 1 ] || usage
verb=$1; shift
lab=$(realpath -m -- "${LAB_DIR:-/}")
[ "$lab" != / ] || { say "LAB_DIR: set it to a scratch folder"; exit 2; }
cache=$(realpath -m -- "${LAB_CACHE:-$lab/cache}")
tree=$lab/tree
limit=${LAB_TIMEOUT:-120}
cgroup=/sys/fs/cgroup/dac-lab-$(printf %s "$lab" | sha256sum | cut -c1-12)
{ : <&0; } 2>/dev/null || exec </dev/null

# ------------------------------------------------------------ bounded, interruptible

# What an interrupted or failed command has to undo: set before it begins something,
# cleared (":") when that is whole. A caller that is killed outright is covered by
# pdeathsig, by the keeper below, and by the next command, which clears leftovers first.
undo=: job=
on_signal() {
    trap - EXIT HUP INT TERM
    [ -z "$job" ] || { kill -TERM "$job"; wait "$job"; } 2>/dev/null
    $undo; say "interrupted"; exit $((128 + $1))
}
trap '$undo' EXIT
trap 'on_signal 1' HUP; trap 'on_signal 2' INT; trap 'on_signal 15' TERM

# supervise CMD...: in the background, for bash acts on a signal at once during `wait`, but
# only after it during a command
supervise() {
    local status
    "$@" </dev/null 7>&- 9>&- &
    job=$!; wait "$job"; status=$?; job=
    return $status
}

# await SECONDS CMD...: CMD is ended with its time or with this script, whatever ends that
await() {
    local seconds=$1; shift
    supervise setpriv --pdeathsig TERM timeout --kill-after=5 "$seconds" setpriv --pdeathsig KILL "$@"
}

# wait_for SECONDS CMD...: polls until CMD succeeds
wait_for() {
    local end=$((SECONDS + $1)); shift
    until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.1; done
}

alive() { grep -qs '^State:.[^ZX]' "/proc/$1/status"; }    # a zombie is not

lock() {    # lock FD FOLDER: one command at a time works on it
    { mkdir -p "$2" && eval "exec $1>\"\$2/lock\"" && flock --wait "$limit" "$1"; } || die "cannot lock $2"
}

# ------------------------------------------------------------ the container

# Prefix: the command sees cgroup v2 alone at /sys/fs/cgroup, as on a pure v2 machine, in a
# mount namespace that ends with it; nothing depends on what the machine mounts where.
in_cgroups=(unshare --mount --propagation private
    sh -c 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"' sh)

# Prefix: systemd-nspawn in a cgroup of its own; what it keeps in /run ends with the namespace.
nspawn=("${in_cgroups[@]}" sh -c '
    mkdir -p "$0" && echo $$ >"$0/cgroup.procs" && mount -t tmpfs -o mode=755 tmpfs /run &&
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --machine=lab \
        --register=no --keep-unit --resolv-conf=off --link-journal=no --console=pipe \
        --system-call-filter="@system-service bpf" \
        --capability=CAP_SYS_RESOURCE,CAP_IPC_LOCK "$@"' "$cgroup" --directory="$tree")

# The number, on this machine, of the container's PID 1; fails when the lab is not booted.
# Asked anew each time: a reboot inside changes it.
leader() {
    local pid
    for pid in $("${in_cgroups[@]}" cat "$cgroup/payload/init.scope/cgroup.procs" 2>/dev/null); do
        [[ $(grep -s ^NSpid: "/proc/$pid/status") == *[[:space:]]1 ]] && { echo "$pid"; return 0; }
    done
    return 1
}

environment=(env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    HOME=/ LANG=C.UTF-8 TERM="${TERM:-dumb}" DEBIAN_FRONTEND=noninteractive)
network=--net

# enter PID CMD...: becomes CMD inside the booted lab. The limit is kept inside, where it
# reaches CMD's children as well; a caller's death ends CMD. nsenter knows nothing of the
# capabilities that nspawn withholds: those that reach the machine itself are dropped here.
enter() {
    local pid=$1 foreground=; shift
    [ -t 0 ] && foreground=--foreground
    exec "${in_cgroups[@]}" sh -c 'mkdir -p "$0"; echo $$ >"$0/cgroup.procs"; exec nsenter "$@"' \
        "$cgroup/payload/lab.scope" \
        --target "$pid" --mount --uts --ipc --pid --cgroup $network -- \
        "${environment[@]}" setpriv --pdeathsig TERM --bounding-set \
        -sys_time,-sys_module,-sys_rawio,-sys_pacct,-syslog,-mac_admin,-mac_override \
        timeout $foreground --kill-after=5 "$limit" "$@"
}

# inside CMD...: the same when booted, in the idle tree otherwise; for copying
inside() {
    local pid
    if pid=$(leader); then ( enter "$pid" "$@" ); else
        timeout "$limit" chroot "$tree" "${environment[@]}" "$@"
    fi
}

populated() { "${in_cgroups[@]}" grep -qs '^populated 1' "$cgroup/cgroup.events"; }
empty()     { ! populated; }
removed()   {
    "${in_cgroups[@]}" sh -c \
        '[ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} + 2>/dev/null; [ ! -d "$1" ]' sh "$cgroup"
}

# Orderly shutdown, then force. May be called at any time, by several at once.
take_down() {
    local pid
    "${in_cgroups[@]}" true 2>/dev/null || return 0         # a machine that can't has no lab
    if pid=$(leader); then
        kill -s SIGRTMIN+4 "$pid" 2>/dev/null               # to systemd: start poweroff.target
        wait_for "$limit" empty || say "no shutdown within $limit s: killed"
    fi
    if populated; then
        "${in_cgroups[@]}" sh -c 'echo 1 >"$1/cgroup.kill"' sh "$cgroup"
        wait_for 10 empty || die "a process of the lab survives SIGKILL"
    fi
    wait_for 10 removed || die "cannot remove cgroup ${cgroup##*/}"
}

# The lab's keeper, a process of its own: ends the lab when its owner or its time is gone,
# tidies up after a poweroff from inside, and holds fd 8 locked as long as it is there.
keep() {
    local end=$((SECONDS + ${LAB_LIFETIME:-3600})) pid status=133
    trap 'take_down; exit' HUP INT TERM
    while [ $status = 133 ]; do                             # nspawn's "asked to reboot"
        setpriv --pdeathsig TERM "${nspawn[@]}" "$@" --boot 8>&- &
        pid=$!
        while kill -0 $pid 2>/dev/null; do
            [ $SECONDS -lt $end ] || break 2
            [ -z "${LAB_OWNER:-}" ] || alive "$LAB_OWNER" || break 2
            sleep 0.2
        done
        wait $pid; status=$?
        [ $status != 133 ] || wait_for 10 removed
    done
    take_down
}

# ------------------------------------------------------------ the tree

base() {    # sets $tarball to the base tree's, having made it where it is not cached
    local suite packages sources key new work
    suite=${LAB_SUITE:-$(. /etc/os-release; echo "${VERSION_CODENAME:-stable}")}
    packages="systemd systemd-sysv dbus libnss-systemd iproute2 procps ${LAB_PACKAGES:-}"
    sources=${LAB_SOURCES:-}
    if [ -z "$sources${LAB_SUITE:-}" ]; then        # else mmdebstrap knows the suite's
        for sources in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list ''; do
            [ -s "$sources" ] && break
        done
    fi
    key=$({ declare -f base; echo "$suite $packages"; cat -- "${sources:-/dev/null}"; } | sha256sum)
    tarball=$cache/$suite-${key:0:12}.tar.zst
    lock 7 "$cache"
    [ ! -s "$tarball" ] || return 0

    new=$cache/.new.tar.zst work=$lab/base.new
    partial=("$new" "$work"); undo=drop_partial; drop_partial
    mkdir -p "$work"
    apt-config dump | grep -E '^Acquire::(Check-|Retries|https?::)' >"$work/apt.conf"
    say "making $tarball"
    TMPDIR=$work LANG=C.UTF-8 await 1800 unshare --mount --pid --fork --kill-child --mount-proc \
        mmdebstrap --quiet --variant=minbase --include="$packages" --aptopt="$work/apt.conf" \
        --customize-hook='chroot "$1" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer' \
        --customize-hook='echo lab >"$1/etc/hostname"; echo "127.0.0.1 localhost lab" >"$1/etc/hosts"' \
        --customize-hook='mkdir -p "$1/var/log/journal"' \
        "$suite" "$new" ${sources:+"$sources"} || die "mmdebstrap failed"
    mv "$new" "$tarball"; drop_partial; undo=:
}
drop_partial() { rm -rf --one-file-system -- "${partial[@]}"; }

# apt-get in the lab; fetches package lists only where an install can't do without
apt='
    mkdir -p /etc/apt; policy=/usr/sbin/policy-rc.d
    if [ ! -d /run/systemd/system ] && [ ! -e $policy ]; then    # idle: start no service
        trap "rm -f $policy" EXIT; printf "#!/bin/sh\nexit 101\n" >$policy; chmod 755 $policy
    fi
    get() { apt-get -qq -y --no-install-recommends --allow-downgrades -o Dpkg::Use-Pty=0 \
        -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@"; }
    get --simulate install "$@" >/dev/null 2>&1 || apt-get -qq update || exit
    get install "$@"'

install() {
    local arg pid args=() store=/var/cache/dac-lab status
    for arg; do
        if [ -f "$arg" ]; then push "$arg" "$store/" || return; arg=$store/$(basename "$arg"); fi
        args+=("$arg")
    done
    [ ! -s /etc/resolv.conf ] || cp --remove-destination -L /etc/resolv.conf "$tree/etc/resolv.conf"
    if pid=$(leader); then    # the lab's systemd, this machine's network
        network='' supervise enter "$pid" sh -c "$apt" sh "${args[@]}"
    else
        undo=take_down
        await "$limit" "${nspawn[@]}" --as-pid2 --suppress-sync=yes -- \
            "${environment[@]}" sh -c "$apt" sh "${args[@]}"
    fi
    status=$?
    rm -rf --one-file-system -- "$tree$store"
    leader >/dev/null || take_down
    undo=:
    return $status
}

push() {
    local src=$1 dest=$2
    if [ -d "$src" ]; then
        inside mkdir -p -- "$dest" && tar -C "$src" --owner=0 --group=0 -cf - . |
            inside tar -C "$dest" --no-overwrite-dir -xf -
    else
        [[ $dest == */ ]] && dest+=$(basename "$src")
        inside sh -c 'mkdir -p "$(dirname "$1")" && cat >"$1.new" && chmod "$2" "$1.new" && mv -f "$1.new" "$1"' \
            sh "$dest" "$(stat -L -c %a "$src")" <"$src"
    fi
}

pull() {
    local src=$1 dest=$2
    if inside test -d "$src" </dev/null; then
        mkdir -p -- "$dest" && inside tar -C "$src" -cf - . </dev/null |
            tar -C "$dest" --no-same-owner --no-overwrite-dir -xf -
    else
        [ -d "$dest" ] && dest+=/$(basename "$src")
        inside cat -- "$src" </dev/null >"$dest.new" && mv -f -- "$dest.new" "$dest" ||
            { rm -f -- "$dest.new"; return 1; }
    fi
}

# ------------------------------------------------------------ the commands

check() {
    local tool
    [ "$(id -u)" = 0 ] || skip "needs root"
    for tool in mmdebstrap:mmdebstrap systemd-nspawn:systemd-container nsenter:util-linux \
        setpriv:util-linux zstd:zstd; do
        command -v "${tool%:*}" >/dev/null || skip "${tool%:*} not found: apt-get install ${tool#*:}"
    done
    unshare --mount --net --pid --uts --ipc --cgroup --fork true 2>/dev/null ||
        skip "no right to make namespaces (CAP_SYS_ADMIN)"
    "${in_cgroups[@]}" sh -c 'mkdir "$1" && rmdir "$1"' sh "$cgroup.check" 2>/dev/null ||
        skip "no cgroup v2 to write to"
}

need_tree() { [ -d "$tree/etc" ] || die "no tree in $lab: create it first"; }

create() {
    local unpack=$tree.new
    take_down
    partial=("$tree" "$unpack" "$lab/base.new"); drop_partial
    base
    partial=("$unpack"); undo=drop_partial
    mkdir -p "$unpack"
    await "$limit" tar -C "$unpack" --zstd --numeric-owner --xattrs --xattrs-include='*' -xf "$tarball" ||
        die "cannot unpack $tarball"
    mv "$unpack" "$tree"; undo=:; exec 7>&-
    [ $# = 0 ] || install "$@" || die "cannot install: $*"
}

booted() {
    local pid
    pid=$(leader) || return 1
    seen=1
    state=$( limit=5; enter "$pid" systemctl is-system-running 2>/dev/null </dev/null )
    [[ $state =~ ^(running|degraded|maintenance)$ ]]
}

boot() {
    local keeper end=$((SECONDS + limit)) seen='' state=''
    ! leader >/dev/null || die "already booted"
    take_down; undo=take_down
    [ "${LAB_NETWORK:-private}" = host ] || set -- --private-network "$@"
    setsid "$BASH" "$(realpath "$0")" keep "$@" </dev/null >"$lab/console.log" 2>&1 8>"$lab/keeper" 9>&- &
    keeper=$!
    until booted; do
        if ! kill -0 $keeper 2>/dev/null; then
            [ "$seen" ] || skip "systemd-nspawn: $(tail -n1 "$lab/console.log")"
            die "systemd ended while booting: $(tail -n1 "$lab/console.log")"
        fi
        [ $SECONDS -lt $end ] || die "not up within $limit s (state: ${state:-none})"
        sleep 0.1
    done
    undo=:
    [ "$state" = running ] || say "state: $state; failed: $( ( enter "$(leader)" \
        systemctl list-units --failed --plain --no-legend </dev/null ) | cut -d' ' -f1 | tr '\n' ' ')"
}

stop() {
    take_down
    [ ! -e "$lab/keeper" ] || flock --wait 10 "$lab/keeper" true || die "the keeper does not end"
}

case $verb in
check)   check ;;
create)  check; lock 9 "$lab"; create "$@" ;;
boot)    check; need_tree; lock 9 "$lab"; boot "$@" ;;
keep)    flock --wait 10 8 && keep "$@" ;;      # boot starts it
run)     [ $# -ge 1 ] || usage; pid=$(leader) || die "not booted"; enter "$pid" "$@" ;;
install) [ $# -ge 1 ] || usage; need_tree; lock 9 "$lab"; install "$@" || die "cannot install: $*" ;;
push)    [ $# = 2 ] || usage; need_tree; push "$@" ;;
pull)    [ $# = 2 ] || usage; need_tree; pull "$@" ;;
stop)    lock 9 "$lab"; stop ;;
destroy) lock 9 "$lab"; stop
         partial=("$tree" "$tree.new" "$lab/base.new" "$lab/console.log" "$lab/keeper" "$lab/.#tree.lck")
         [ "${1:-}" != --all ] || partial+=("$cache")
         drop_partial; rm -f "$lab/lock"; rmdir --ignore-fail-on-non-empty "$lab" ;;
*)       usage ;;
esac
