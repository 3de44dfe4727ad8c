"""The service under a real systemd; README.md says how to run these tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

from lib.dacd import BUILD, ROOT, Dacd, write_ini  # noqa: E402
from lib.provider import Provider  # noqa: E402
from machine import Machine, wait_for, why_not  # noqa: E402

PREFIX = Path("usr/local")


class Service(Dacd):
    """dacd as a service of a machine; asking and looking at what is stored are Dacd's."""

    def __init__(self, machine, folder, provider_url):
        super().__init__(folder, provider_url, workers=3)
        self.machine = machine
        self.db_path = machine.tree / "var/lib/dac/dac.db"
        self.conf = machine.tree / PREFIX / "etc/dac/dac.conf"
        key = self.conf.with_name("provider.key")
        key.write_text((self.folder / "provider.key").read_text())
        self.sections["provider perplexity"]["api_key_file"] = "/" / key.relative_to(machine.tree)
        self.sections["store"]["sqlite"] = "/var/lib/dac/dac.db"
        self.sections["server"].update(env_file=None, drain_timeout="6s")

    def show(self, what):
        return self.machine.run("systemctl", "show", "-p", what, "--value", "dacd").strip()

    @property
    def log(self):
        """Of this start, and not of those before."""
        this = f"_SYSTEMD_INVOCATION_ID={self.show('InvocationID')}"
        return self.machine.run("journalctl", this, "-o", "cat", "--no-pager")

    def processes(self):
        return self.machine.processes("dacd.service")

    def master(self):
        found = [p for p, title in self.processes().items() if title.startswith("dacd: master")]
        assert len(found) == 1, self.processes()
        return found[0]

    def is_up(self):
        return self.show("ActiveState") == "active" and self.get_sync("/readyz")[0] == 200


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A booted machine with DAC installed as `make install` does it."""
    reason = why_not()
    if reason:
        if os.environ.get("REQUIRE_SYSTEMD") == "1":
            pytest.fail(f"cannot boot a systemd here: {reason}")
        pytest.skip(f"cannot boot a systemd here: {reason}")
    booted = Machine(tmp_path_factory.mktemp("machine"), BUILD / "systemd")
    try:
        booted.create()
        top = "build" if BUILD == ROOT / "build" else str(BUILD)
        subprocess.run(
            ["make", "-s", f"BUILD={top}", f"DESTDIR={booted.tree}", "install"], cwd=ROOT, check=True, timeout=300
        )
        booted.boot()
        booted.run("systemd-sysusers")
        yield booted
    finally:
        booted.destroy()


@pytest.fixture
def mock(tmp_path):
    provider = Provider(tmp_path / "mock").start()
    yield provider
    provider.stop()


@pytest.fixture
def service(machine, mock, tmp_path):
    """The running service, with an empty store."""
    machine.run("rm", "-rf", "/var/lib/dac")
    dac = Service(machine, tmp_path / "dac", mock.url)
    write_ini(dac.conf, dac.sections)
    machine.run("sh", "-c", f"chgrp dac /{PREFIX}/etc/dac/* && chmod 640 /{PREFIX}/etc/dac/*")
    machine.run("systemctl", "reset-failed", "dacd", check=False)
    machine.run("systemctl", "start", "dacd")
    yield dac
    machine.run("systemctl", "stop", "dacd")
    wait_for(lambda: not dac.processes(), "no process is left")
