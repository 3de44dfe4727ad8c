"""The package: what it installs works as it stands, an upgrade keeps what is there, a purge
leaves nothing. The tests are steps of one story."""

import asyncio
import json
import subprocess

import pytest
from lib import wire
from lib.provider import Provider, say
from conftest import UNIT, Service
from machine import wait_for

# What dpkg, apt, systemd and a running machine keep for themselves.
NOT_OURS = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/log", "/var/cache", "/var/lib/dpkg", "/var/lib/apt")
BACKUPS = {"/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-"}
ADDRESS = ("127.0.0.1", 8000)  # of the package's configuration


def files(machine):
    prune = " -o ".join(f"-path {p}" for p in NOT_OURS)
    found = set(machine.run("sh", "-c", f"find / \\( {prune} \\) -prune -o -print").splitlines())
    return found - BACKUPS - {f"{p}.lock" for p in ("/etc/passwd", "/etc/group", "/etc/.pwd")}


def accounts(machine):
    return machine.run("sh", "-c", "getent passwd; getent group")


def is_installed(machine):
    return "install ok installed" in machine.run("dpkg", "-s", "dac", check=False)


@pytest.fixture(scope="module")
def before(bare_machine):
    """Files, users and units of the machine before all this."""
    return files(bare_machine), accounts(bare_machine)


@pytest.fixture(scope="module")
def newer(deb, tmp_path_factory):
    """The same package as a later version."""
    folder = tmp_path_factory.mktemp("newer")
    subprocess.run(["dpkg-deb", "-R", deb, folder / "tree"], check=True)
    control = folder / "tree/DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 999."))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", folder / "tree", folder / "dac.deb"], check=True)
    return folder / "dac.deb"


def test_lintian_has_nothing_to_say(deb):
    p = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", *deb.parent.glob("*.deb")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (p.returncode, p.stdout, p.stderr) == (0, "", "")


def test_what_is_installed_runs_and_says_what_to_set(bare_machine, before, deb):
    machine = bare_machine
    machine.install(deb)
    assert machine.show(UNIT, "ActiveState") == "active"
    assert machine.show(UNIT, "UnitFileState") == "enabled"
    log = machine.run("journalctl", "-u", UNIT, "-o", "cat", "--no-pager")
    assert "no [provider NAME] is configured" in log and "/etc/dac/dac.conf" in log

    async def ask():
        org = {"x-org-id": "org_demo"}
        assert (await wire.request(*ADDRESS, "GET", "/livez", {}, None, 10)).status == 200
        thread = await wire.request(*ADDRESS, "POST", "/api/threads/", org, {"title": "a thread"}, 10)
        path = f"/api/threads/{thread.json()['thread_id']}/messages"
        return await wire.request(*ADDRESS, "POST", path, org, Service.question("Why?"), 10)

    answer = asyncio.run(ask())
    assert answer.status in (400, 404, 503), answer.text
    assert "provider" in answer.text
    member = ("setpriv", "--reuid=nobody", "--regid=dac", "--clear-groups")
    for who in ((), member):
        assert machine.run(*who, "dacctl", "status")
        assert machine.run(*who, "dacctl", "reload")


def test_secrets_have_their_modes(bare_machine):
    modes = bare_machine.run("stat", "-c", "%U:%G %a %n", "/etc/dac/dac.conf", "/var/lib/dac", "/run/dac")
    assert modes.splitlines() == [
        "root:dac 640 /etc/dac/dac.conf",
        "dac:dac 750 /var/lib/dac",
        "dac:dac 750 /run/dac",
    ]


def test_it_depends_on_what_it_is_linked_with(bare_machine):
    for program in ("/usr/sbin/dacd", "/usr/bin/dacctl"):
        assert "not found" not in bare_machine.run("ldd", program)
    assert bare_machine.run("dpkg", "--verify", "dac") == ""


def test_an_upgrade_keeps_configuration_and_streams(bare_machine, newer, tmp_path):
    machine = bare_machine
    mock = Provider(tmp_path / "mock").start()
    dac = Service(machine, tmp_path / "dac", mock.url)
    dac.configure()
    configuration = dac.conf.read_text()
    machine.run("systemctl", "restart", UNIT)
    wait_for(dac.is_up, "it is up")
    old = dac.master()

    async def scene():
        stream = await dac.open_ask(await dac.thread(), say(tokens=20, gap="100ms"))
        await stream.until("delta")
        upgrade = asyncio.create_task(asyncio.to_thread(machine.install, newer))
        await stream.rest(timeout=20)
        assert stream.one("done")
        await upgrade
        return stream.text

    try:
        text = asyncio.run(scene())
        wait_for(dac.is_up, "the new one is up")
        assert machine.run("dpkg-query", "-W", "-f", "${Version}", "dac").startswith("999.")
        assert dac.conf.read_text() == configuration
        assert machine.run("stat", "-c", "%U:%G %a", "/etc/dac/dac.conf").strip() == "root:dac 640"
        assert dac.master() != old
        assert [m["content"] for m in dac.messages() if m["role"] == "assistant"] == [text]
    finally:
        mock.stop()


OPTIONAL = ("dacd.socket", "dac-alerts.timer", "dac-alerts.service")


def test_removing_keeps_what_is_the_administrator_s(bare_machine):
    """And nothing that runs: what was switched on by hand is off, its address is free."""
    bare_machine.run("systemctl", "stop", UNIT)
    bare_machine.run("systemctl", "enable", "--now", *OPTIONAL[:2])
    bare_machine.run("systemctl", "start", UNIT)
    bare_machine.run("systemctl", "start", OPTIONAL[2], check=False)
    assert bare_machine.show(OPTIONAL[0], "ActiveState") == "active"
    bare_machine.run("apt-get", "-qq", "-y", "remove", "dac")
    assert not is_installed(bare_machine)
    assert bare_machine.processes(UNIT) == {}
    assert {bare_machine.show(u, "ActiveState") for u in OPTIONAL} <= {"inactive", "failed"}
    assert f":{ADDRESS[1]} " not in bare_machine.run("ss", "-tln")
    kept = bare_machine.run("ls", "/etc/dac/dac.conf", "/etc/dac/provider.key", "/var/lib/dac/dac.db")
    assert len(kept.split()) == 3


def test_a_purge_leaves_nothing(bare_machine, before):
    bare_machine.run("apt-get", "-qq", "-y", "purge", "dac")
    assert sorted(files(bare_machine) - before[0]) == []
    assert accounts(bare_machine) == before[1]
    assert bare_machine.run("find", "/run", "/dev/shm", "/tmp", "/var/tmp", "-name", "*dac*") == ""
    units = json.loads(bare_machine.run("systemctl", "list-units", "--all", "-o", "json", "dac*"))
    assert units == []
