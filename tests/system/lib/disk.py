"""A small file system of its own, which can be full or read-only. Needs root that may mount."""

import contextlib
import functools
import os
import subprocess

import pytest


@functools.cache
def may_mount():
    """Whether this process may mount: root in a container often may not."""
    if os.geteuid() != 0:
        return False
    probe = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=64k dac-test /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not may_mount(), reason="may not mount a file system here")


class Disk:
    def __init__(self, path, size):
        assert os.geteuid() == 0, "a disk of its own needs root"
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={size}", "dac-test")

    def _mount(self, *args):
        subprocess.run(["mount", *args, self.path], check=True)

    def fill(self):
        """Leaves not a byte."""
        with open(self.path / "ballast", "ab", buffering=0) as f, contextlib.suppress(OSError):
            while f.write(b"x" * 4096):
                pass

    def free(self):
        (self.path / "ballast").unlink(missing_ok=True)

    def read_only(self):
        self._mount("-o", "remount,ro")

    def close(self):
        subprocess.run(["umount", "-l", self.path], check=False)
