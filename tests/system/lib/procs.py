"""What /proc says about processes: sessions, titles, CPU, memory, sockets."""

import os
import re

TICKS = os.sysconf("SC_CLK_TCK")


def _stat(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            raw = f.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return raw[raw.rindex(b")") + 2 :].split()


def session(sid):
    """Living processes of a session: {pid: title}. Zombies don't count."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        stat = _stat(name)
        if stat is None or stat[0] in (b"Z", b"X") or int(stat[3]) != sid:
            continue
        found[int(name)] = title(int(name))
    return found


def title(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def cpu_seconds(pids):
    """User and system time of processes, their waited-for children left out."""
    total = 0
    for pid in pids:
        stat = _stat(pid)
        if stat:
            total += int(stat[11]) + int(stat[12])
    return total / TICKS


def open_descriptors(pid):
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        return 0


def _sockets(pid):
    """Inodes of a process's sockets."""
    found = set()
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                m = re.match(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}"))
            except FileNotFoundError:
                continue
            if m:
                found.add(m[1])
    except FileNotFoundError:
        pass
    return found


def _established(pid, column, port):
    mine = _sockets(pid)
    count = 0
    with open("/proc/net/tcp") as f:
        for line in f.readlines()[1:]:
            field = line.split()
            if int(field[column].split(":")[1], 16) == port and field[3] == "01":
                count += field[9] in mine
    return count


def connections(pid, port):
    """Number of established TCP connections that a process holds on its local port."""
    return _established(pid, 1, port)


def connections_to(pid, port):
    """Number of established TCP connections of a process to a remote port."""
    return _established(pid, 2, port)
