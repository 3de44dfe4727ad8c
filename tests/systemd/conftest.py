"""The service under a real systemd; README.md says how to run these tests."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

from lib.dacd import API_KEY, BUILD, Dacd, write_ini  # noqa: E402
from lib.provider import Provider  # noqa: E402
from machine import Machine, wait_for, why_not  # noqa: E402

UNIT = "dacd.service"


class Service(Dacd):
    """dacd as a service of a machine; asking and looking at what is stored are Dacd's."""

    def __init__(self, machine, folder, provider_url):
        super().__init__(folder, provider_url, workers=3)
        self.machine = machine
        self.db_path = machine.tree / "var/lib/dac/dac.db"
        self.conf = machine.tree / "etc/dac/dac.conf"
        key = self.conf.with_name("provider.key")
        key.write_text((self.folder / "provider.key").read_text())
        self.sections["provider perplexity"]["api_key_file"] = "/" / key.relative_to(machine.tree)
        self.sections["store"].update(sqlite="/var/lib/dac/dac.db", spool="/var/lib/dac/spool.db")
        self.sections["server"].update(env_file=None, control=None, drain_timeout="6s")

    def configure(self):
        write_ini(self.conf, self.sections)
        self.machine.run("sh", "-c", "chgrp dac /etc/dac/* && chmod 640 /etc/dac/*")

    def show(self, what):
        return self.machine.show(UNIT, what)

    @property
    def log(self):
        """Of this start, and not of those before."""
        this = f"_SYSTEMD_INVOCATION_ID={self.show('InvocationID')}"
        return self.machine.run("journalctl", this, "-o", "cat", "--no-pager")

    def entries(self, *matches):
        """The journal's, of this start; fields as journalctl shows them."""
        return self.machine.journal(f"_SYSTEMD_INVOCATION_ID={self.show('InvocationID')}", *matches)

    def processes(self):
        return self.machine.processes(UNIT)

    def master(self):
        found = [p for p, title in self.processes().items() if title.startswith("dacd: master")]
        assert len(found) == 1, self.processes()
        return found[0]

    def drop_in(self, unit, text):
        """Settings of a unit from its next start on; an empty text takes them away."""
        folder = f"/run/systemd/system/{unit}.d"
        self.machine.run("sh", "-c", f'rm -rf {folder}; [ -z "$0" ] || {{ mkdir {folder}; echo "$0" >{folder}/test.conf; }}', text)
        self.machine.run("systemctl", "daemon-reload")

    def is_up(self):
        return self.show("ActiveState") == "active" and self.get_sync("/readyz")[0] == 200


@pytest.fixture(scope="session")
def deb():
    """The package, which `make check-systemd` has built."""
    found = list((BUILD / "deb").glob("dac_*.deb"))
    assert len(found) == 1, f"make deb: {found}"
    return found[0]


def booted(tmp_path_factory, deb):
    reason = why_not()
    if reason:
        if os.environ.get("REQUIRE_SYSTEMD") == "1":
            pytest.fail(f"cannot boot a systemd here: {reason}")
        pytest.skip(f"cannot boot a systemd here: {reason}")
    machine = Machine(tmp_path_factory.mktemp("machine"), BUILD / "systemd", deb)
    try:
        machine.start()
        with machine.network():
            yield machine
    finally:
        machine.destroy()


@pytest.fixture(scope="module")
def bare_machine(tmp_path_factory, deb):
    """A booted machine without DAC."""
    yield from booted(tmp_path_factory, deb)


@pytest.fixture(scope="module")
def machine(bare_machine, deb):
    """A booted machine with the package installed."""
    bare_machine.install(deb)
    return bare_machine


@pytest.fixture
def mock(machine, tmp_path):
    provider = Provider(tmp_path / "mock", ["--api-key", API_KEY]).start()
    yield provider
    provider.stop()


@pytest.fixture
def service(machine, mock, tmp_path):
    """The running service, with an empty store."""
    machine.run("systemctl", "stop", UNIT)
    machine.run("sh", "-c", "rm -rf /var/lib/dac/*")
    dac = Service(machine, tmp_path / "dac", mock.url)
    dac.configure()
    machine.run("systemctl", "reset-failed", UNIT, check=False)
    start = machine.run("sh", "-c", f"systemctl start {UNIT} 2>&1 || echo failed")
    assert "failed" not in start, machine.run("journalctl", "-u", UNIT, "-n", "30", "-o", "cat", "--no-pager")
    yield dac
    machine.run("systemctl", "stop", UNIT)
    wait_for(lambda: not dac.processes(), "no process is left")
