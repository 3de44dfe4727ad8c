"""A machine of its own for a real systemd: lab.sh boots it, this puts tests into it. Its
processes are in one control group, and it ends by itself when this process is gone, so that
nothing of it is left behind, whatever happens to the test.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import re
import subprocess
import time
from pathlib import Path

LAB = Path(__file__).with_name("lab.sh")
CLONE_NEWNET = 0x40000000
TOOLS = ["curl"]  # what the package only recommends


def why_not():
    """Why this machine cannot boot another one; empty if it can."""
    p = subprocess.run([LAB, "check"], capture_output=True, text=True, env=environment("/nowhere"), check=False)
    return "" if p.returncode == 0 else p.stderr.strip()


def environment(folder, **more):
    return {"PATH": os.environ["PATH"], "LAB_DIR": str(folder), "LAB_OWNER": str(os.getpid()), **more}


def wait_for(condition, what, timeout=30.0):
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(OSError, ValueError):
            value = condition()
            if value:
                return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)


def enter_network(fd):
    """From here on, sockets of this thread and of what it starts are of another machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(fd, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


def depends(deb):
    """The packages that a .deb file depends on, of alternatives the first one."""
    fields = subprocess.run(["dpkg-deb", "-f", deb, "Depends"], capture_output=True, text=True, check=True)
    return [re.split(r"[ |(]", d.strip())[0] for d in fields.stdout.split(",")]


class Machine:
    def __init__(self, folder, cache, deb):
        self.folder = Path(folder)
        self.tree = self.folder / "tree"
        self.deb = deb
        self.group = "dac-lab-" + hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:12]
        packages = " ".join(sorted({*TOOLS, *depends(deb)}))
        self.env = environment(folder, LAB_CACHE=str(cache), LAB_PACKAGES=packages)

    def lab(self, *words, check=True, timeout=900):
        p = subprocess.run(
            [LAB, *map(str, words)],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or p.returncode == 0, f"{words}: {p.stdout}{p.stderr}"
        return p.stdout

    def start(self):
        """A fresh one, booted. The first time its archive is made, with Debian's mirror."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lab("create")
        self.lab("boot")

    def destroy(self):
        self.lab("destroy")

    def run(self, *command, check=True):
        """Output of a command inside."""
        return self.lab("run", *command, check=check)

    def install(self, deb):
        """As apt does it; maintainer scripts talk to the running systemd."""
        return self.lab("install", deb)

    def _of_group(self, suffix):
        """Numbers, on this machine, of the processes of a control group."""
        for proc in Path("/proc").iterdir():
            if proc.name.isdigit():
                with contextlib.suppress(OSError):
                    if f"/{self.group}/payload/{suffix}\n" in (proc / "cgroup").read_text():
                        yield int(proc.name)

    def leader(self):
        """Its process 1."""
        for pid in self._of_group("init.scope"):
            if re.search(r"^NSpid:.*\t1$", Path(f"/proc/{pid}/status").read_text(), re.M):
                return pid
        raise ValueError("no process 1")

    @contextlib.contextmanager
    def network(self):
        """Inside, this thread and what it starts have the machine's network, and no other."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{self.leader()}/ns/net", os.O_RDONLY)
        try:
            enter_network(there)
            yield
        finally:
            enter_network(here)
            os.close(here)
            os.close(there)

    def processes(self, unit):
        """{pid: title} of a unit's living processes, by this machine's numbers."""
        found = {}
        for pid in self._of_group(f"system.slice/{unit}"):
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if title:
                    found[pid] = title
        return found

    def journal(self, *matches):
        """Entries of the journal; a list of dicts."""
        lines = self.run("journalctl", *matches, "-o", "json", "--all", "--no-pager").splitlines()
        return [json.loads(line) for line in lines]

    def show(self, unit, what):
        return self.run("systemctl", "show", "-p", what, "--value", unit).strip()
