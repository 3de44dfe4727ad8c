"""The test's side of the preloaded library: faults.c has the layout of the page they share."""

import contextlib
import mmap
import os
import re
import struct
import subprocess

from lib.dacd import BUILD

LIBRARY = BUILD / "tests" / "faults" / "faults.so"
KINDS = {"alloc": 1, "fd": 2, "mmap": 3}
ROLES = {"any": 0, "master": 1, "worker": 2, "recorder": 3}
TRACE_AT, TRACE_MAX, TRACE_SIZE = 64, 32, 2048
NEVER = 1 << 62

FULL = bool(os.environ.get("FAULTS_FULL"))
RANGE = [int(n) for n in (os.environ.get("FAULTS_RANGE") or "").split("-") if n]
SAMPLES = int(os.environ.get("FAULTS_SAMPLES") or 0)


class Faults:
    def __init__(self, path):
        path.write_bytes(bytes(TRACE_AT + TRACE_MAX * TRACE_SIZE))
        with open(path, "r+b") as f:
            self.page = mmap.mmap(f.fileno(), 0)
        path.chmod(0o666)
        assert LIBRARY.exists(), f"{LIBRARY} is not built (make check-faults)"
        self.env = {"LD_PRELOAD": str(LIBRARY), "DAC_FAULTS": str(path)}

    def arm(self, kind, role, first=NEVER, count=1):
        """From now on call number `first` of the kind in the role fails, and count - 1 behind it."""
        self.disarm()
        self.page[64:] = bytes(len(self.page) - 64)
        struct.pack_into("<3I4Q", self.page, 4, KINDS[kind], ROLES[role], 0, first, count, 0, 0)
        struct.pack_into("<I", self.page, 0, 1)

    def disarm(self):
        """Returns how many calls there were, and how many of them failed."""
        struct.pack_into("<I", self.page, 0, 0)
        return struct.unpack_from("<2Q", self.page, 32)

    @contextlib.contextmanager
    def explained(self, kind, role, first, count):
        """What fails inside says which calls had failed, and from where they came."""
        try:
            yield
        except BaseException as e:
            self.disarm()
            e.add_note(f"{kind} {first} (+{count - 1}) in {role}:\n" + "\n".join(self.traces()))
            raise

    def traces(self):
        """Where calls failed, innermost first."""
        out = []
        for i in range(TRACE_MAX):
            pid, text = struct.unpack_from(f"<Q{TRACE_SIZE - 8}s", self.page, TRACE_AT + i * TRACE_SIZE)
            if pid:
                what, *frames = text.split(b"\0")[0].decode().split("\n")
                out.append(f"{what} in {pid}: " + " < ".join(_name(f) for f in frames[:14]))
        return out


_names = {}


def _name(frame):
    """A function's name from "module+0xoffset symbol"."""
    if frame not in _names:
        m = re.match(r"(.+)\+(0x[0-9a-f]+) (\S*)", frame)
        name = m[3] if m else ""
        if m and m[1].startswith("dacd"):
            p = subprocess.run(
                ["addr2line", "-fse", BUILD / "dacd", m[2]], capture_output=True, text=True, check=False
            )
            name = " ".join(p.stdout.split()) or name
        elif m:
            name = f"{name or m[2]} {m[1]}"
        _names[frame] = name or frame
    return _names[frame]


def numbers(seen, samples):
    """Which calls to fail of `seen`: the first ones, then evenly spread; all with FAULTS_FULL."""
    samples = SAMPLES or samples
    if RANGE:
        return list(range(RANGE[0], RANGE[-1] + 1))
    if FULL or seen <= samples:
        return list(range(1, seen + 1))
    step = seen / samples
    return sorted({1 + int(i * step) for i in range(samples)})
