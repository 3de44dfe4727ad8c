"""A machine of its own for a real systemd: a small Debian in a folder, booted by
systemd-nspawn, with this machine's network. Needs root, control groups (version 2) and the
packages of `tools/install-deps.sh systemd`; why_not() says what is missing.

Its processes are in one control group, so that nothing of it is left behind, whatever
happens to the test.
"""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

PACKAGES = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "libnss-systemd",
    "libevent-2.1-7",
    "libcurl4",
    "libnghttp2-14",
    "libssl3",
    "libjson-c5",
    "libpq5",
    "libsqlite3-0",
]
TOOLS = ["mmdebstrap", "systemd-nspawn", "nsenter", "unshare", "setpriv", "tar"]

# systemd-nspawn, where no systemd manages the control groups it is started in: version 2 alone
# is mounted, it makes its groups below one of our own, and what it keeps in /run is private.
BOOT = """
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo $$ >"/sys/fs/cgroup/$0/cgroup.procs"
mount -t tmpfs -o mode=755 tmpfs /run
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
exec setpriv --pdeathsig TERM systemd-nspawn --quiet --machine="$0" --register=no --keep-unit \\
    --resolv-conf=off --link-journal=no --console=pipe \\
    --system-call-filter="@system-service bpf" --directory="$1" --boot
"""


def groups():
    """Where control groups of version 2 are mounted, or None."""
    for line in Path("/proc/mounts").read_text().splitlines():
        device, where, kind = line.split()[:3]
        if kind == "cgroup2":
            return Path(where)
    return None


def why_not():
    """Why this machine cannot boot another one; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [t for t in TOOLS if not shutil.which(t)]
    if missing:
        return f"{', '.join(missing)} not found (tools/install-deps.sh systemd)"
    probe = ["unshare", "--mount", "--pid", "--cgroup", "--fork", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        return "no right to make namespaces"
    top = groups()
    try:
        (top / f"dactest-probe-{os.getpid()}").mkdir()
        (top / f"dactest-probe-{os.getpid()}").rmdir()
    except (OSError, TypeError):
        return "no control groups of version 2 to write to"
    return ""


def wait_for(condition, what, timeout=30.0):
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(OSError, ValueError):
            value = condition()
            if value:
                return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)


class Machine:
    def __init__(self, folder, cache):
        self.folder = folder
        self.tree = folder / "tree"
        self.cache = cache
        self.name = f"dactest-{os.getpid()}"
        self.group = groups() / self.name
        self.nspawn = None

    def create(self):
        """The tree, from an archive that is made once, from Debian's mirror."""
        archive = self.cache / "debian.tar"
        self.cache.mkdir(parents=True, exist_ok=True)
        if not archive.exists():
            new = self.cache / f"new-{os.getpid()}.tar"
            subprocess.run(
                ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", "bookworm", new],
                check=True,
                timeout=600,
            )
            new.rename(archive)
        self.tree.mkdir(parents=True)
        subprocess.run(
            ["tar", "-C", self.tree, "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xf", archive],
            check=True,
        )
        (self.tree / "etc/hostname").write_text("dactest\n")

    def boot(self):
        self.group.mkdir()
        with open(self.folder / "console.log", "wb") as console:
            self.nspawn = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-ec", BOOT, self.name, self.tree],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        wait_for(self._is_up, "systemd is up")

    def _is_up(self):
        assert self.nspawn.poll() is None, (self.folder / "console.log").read_text()[-2000:]
        state = self.run("systemctl", "is-system-running", check=False).strip()
        return state in ("running", "degraded")

    def leader(self):
        """Its process 1, by this machine's number."""
        for pid in (self.group / "payload/init.scope/cgroup.procs").read_text().split():
            numbers = [s for s in Path(f"/proc/{pid}/status").read_text().splitlines() if s.startswith("NSpid")]
            if numbers and numbers[0].split()[-1] == "1":
                return pid
        raise ValueError("no process 1")

    def run(self, *command, check=True, timeout=60):
        """Output of a command inside."""
        enter = ["nsenter", "--target", self.leader(), "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--"]
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        p = subprocess.run(
            [*enter, *clean, *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert not check or p.returncode == 0, f"{command}: {p.stdout}{p.stderr}"
        return p.stdout

    def processes(self, unit):
        """{pid: title} of a unit's living processes, by this machine's numbers."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for pid in (self.group / "payload/system.slice" / unit / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    if title:
                        found[int(pid)] = title
        return found

    def destroy(self):
        """Ends it at once; leaves no process, no group and no file."""
        if self.group.exists():
            (self.group / "cgroup.kill").write_text("1")
            wait_for(lambda: "populated 0" in (self.group / "cgroup.events").read_text(), "all are gone")
            for path, _, _ in os.walk(self.group, topdown=False):
                os.rmdir(path)
        if self.nspawn:
            self.nspawn.wait(10)
        shutil.rmtree(self.tree, ignore_errors=True)
