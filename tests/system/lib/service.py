"""Starting and stopping dacd in ways that only tests of its processes need."""

import json
import os
import pwd
import socket
import subprocess
import time

from lib.dacd import BUILD


def run_dacd(*args, timeout=20, **kw):
    """Runs dacd to its end; returns (exit code, stdout, stderr)."""
    p = subprocess.run(
        [BUILD / "dacd", *args], capture_output=True, text=True, timeout=timeout, check=False, **kw
    )
    return p.returncode, p.stdout, p.stderr


def dacctl(dac, *args):
    """Output of a dacctl command on this instance; JSON where that was asked for."""
    p = subprocess.run(
        [BUILD / "dacctl", "-n", dac.name, *args], capture_output=True, text=True, timeout=10, check=False
    )
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout) if "--json" in args else p.stdout


def fetcher_of(dac):
    """The pid that fetches the only answer that streams; None while none does."""
    flights = dacctl(dac, "flights", "--json")["flights"]
    owners = [f["owner"] for f in flights if f["state"] == "streaming"]
    if len(owners) != 1:
        return None
    return {p["slot"]: p["pid"] for p in dacctl(dac, "status", "--json")["processes"]}.get(owners[0])


def nobody():
    return pwd.getpwnam("nobody")


def as_nobody(folder):
    """Gives a folder to nobody and returns what subprocess needs to start a program so."""
    user = nobody()
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, user.pw_uid, user.pw_gid)
    while folder.parent != folder:  # pytest's folders are private
        folder.chmod(folder.stat().st_mode | 0o011)
        folder = folder.parent
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def uid_of(pid):
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            if line.startswith("Uid:"):
                return [int(n) for n in line.split()[1:]]
    return None


def until(condition, what, timeout=10.0):
    """Waits for a condition without an event loop; returns its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.01)


def answers(port, timeout=3.0):
    """Whether a new client is answered, and how long that took."""
    began = time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as s:
            s.settimeout(timeout)
            s.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return s.recv(100).startswith(b"HTTP/1.1 200"), time.monotonic() - began
    except OSError:
        return False, time.monotonic() - began
