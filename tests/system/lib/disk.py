"""A small file system of its own, which can be full or read-only. Needs root."""

import contextlib
import os
import subprocess


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
