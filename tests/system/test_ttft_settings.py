"""prep_ttft_test.sh and restore_prod_settings.sh: temporary limits, and back byte for byte, also
twice in a row, after a death at any step, and without a trace in the shell that sources them."""

import os
import re
import shutil
import subprocess
import threading

import pytest

from lib.dacd import BUILD, ROOT, write_ini
from lib.service import nobody, run_dacd

TOOLS = ROOT / "tools"
# Letters, CR, a value of its own for a limit, no line end behind the last line.
BEFORE = b"# d\xc3\xa9j\xc3\xa0 vu\r\nPERPLEXITY_RPS=2\n\nCOALESCE_ENABLED=1\nPERPLEXITY_CONCURRENCY=5"
LIMITS = {"perplexity": {"rps": "1000", "burst": "1000", "concurrency": "256"}}
# What changes by itself from one command to the next.
ALIVE = re.compile(rb"^(_|BASH_\w+|PIPESTATUS|RANDOM|SRANDOM|SECONDS|LINENO|EPOCH\w+|PPID|OPTIND)=")


class Place:
    """A configuration, its env file in a folder of its own, and shells that source things."""

    def __init__(self, dac, content=BEFORE):
        self.dac = dac
        self.folder = dac.folder / "etc"
        self.folder.mkdir(exist_ok=True)
        self.env_file = self.folder / "dac.env"
        dac.sections["server"]["env_file"] = self.env_file
        dac.sections["provider perplexity"].update(rps=1, burst=2, concurrency=3)
        write_ini(dac.conf, dac.sections)
        self.content = content
        if content is not None:
            self.env_file.write_bytes(content)
            self.env_file.chmod(0o640)
            if os.getuid() == 0:
                os.chown(self.env_file, nobody().pw_uid, 1)
        self.was = self.state()

    def state(self):
        """All of the folder: names, contents, modes, owners, times of change."""
        found = {}
        for path in self.folder.iterdir():
            s = path.stat()
            found[path.name] = (path.read_bytes(), oct(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns)
        return found

    def env(self, **more):
        env = {
            "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TMPDIR": str(self.dac.folder), "DACD": str(BUILD / "dacd"),
            "DACCTL": str(BUILD / "dacctl"), "DAC_CONF": str(self.dac.conf), **more,
        }  # fmt: skip
        if self.content is None:  # dacd wants a file that its configuration names
            env |= {"DAC_ENV_FILE": str(self.env_file), "DAC_PROVIDERS": "perplexity"}
        return env

    def shell(self, script, kind="dash", check=True, env=None):
        p = subprocess.run(
            [kind, "-c", script], capture_output=True, cwd=self.dac.folder, timeout=30, check=False,
            env=env or self.env(),
        )  # fmt: skip
        assert not check or p.returncode == 0, p.stderr.decode() + p.stdout.decode()
        return p

    def limits(self):
        """As dacd would start with."""
        code, out, err = run_dacd("-t", "-c", self.dac.conf)
        assert code == 0, err
        section = out.split("[provider perplexity]")[1]
        return {"perplexity": {k: re.search(rf"^{k} = (\S+)", section, re.M)[1] for k in LIMITS["perplexity"]}}


@pytest.fixture
def place(make_dac):
    return Place(make_dac(provider="http://127.0.0.1:9/v1", start=False))


def prep(folder=TOOLS):
    return f". {folder}/prep_ttft_test.sh"


def restore(folder=TOOLS):
    return f". {folder}/restore_prod_settings.sh"


@pytest.mark.parametrize("kind", ["bash", "dash"])
@pytest.mark.parametrize("options", ["", "set -eu", "set -Cf"])
def test_twice_each_and_nothing_is_left_in_the_shell(place, kind, options):
    out = place.dac.folder
    p = place.shell(
        f"""{options}
        trap 'echo leaving' EXIT; trap 'echo usr1' USR1; mv() {{ echo no mv; }}; status=7; IFS=:
        alias > {out}/aliases.before; trap > {out}/traps.before; set +o > {out}/options.before
        pwd > {out}/folder.before; umask > {out}/umask.before; set > {out}/set.before
        {prep()}; {prep()}
        set > {out}/set.after; umask > {out}/umask.after; pwd > {out}/folder.after
        set +o > {out}/options.after; trap > {out}/traps.after; alias > {out}/aliases.after
        echo still here""",
        kind,
    )  # fmt: skip
    assert b"still here\nleaving\n" in p.stdout
    for name in ("aliases", "traps", "options", "folder", "umask", "set"):
        before, after = (
            [line for line in (out / f"{name}.{when}").read_bytes().splitlines() if not ALIVE.match(line)]
            for when in ("before", "after")
        )
        assert before == after, name
    assert b"PERPLEXITY_RPS 2 -> 1000" in p.stdout and b"PERPLEXITY_BURST 2 -> 1000" in p.stdout
    assert place.limits() == LIMITS
    new = place.state()["dac.env"]
    assert new[0].startswith(BEFORE + b"\n") and new[1:4] == place.was["dac.env"][1:4]
    p = place.shell(f"{options}\n{restore()}; {restore()}; echo still here", kind)
    assert b"PERPLEXITY_RPS 2\n" in p.stdout and b"nothing to restore" in p.stdout
    assert p.stdout.endswith(b"still here\n")
    assert place.state() == place.was


@pytest.mark.parametrize("kind", ["bash", "dash"])
def test_as_the_procedure_sources_them(place, kind):
    """By name, in their folder; dash wants a dot and a path."""
    dot = "source " if kind == "bash" else ". ./"
    place.shell(f"cd {TOOLS}; {dot}prep_ttft_test.sh", kind)
    assert place.limits() == LIMITS
    place.shell(f"cd {TOOLS}; {dot}restore_prod_settings.sh", kind)
    assert place.state() == place.was


@pytest.mark.parametrize("kind", ["bash", "dash"])
def test_there_was_no_file(make_dac, kind):
    place = Place(make_dac(provider="http://127.0.0.1:9/v1", start=False), content=None)
    place.shell(f"{prep()}; {prep()}", kind)
    assert b"\nPERPLEXITY_CONCURRENCY=256\n" in place.env_file.read_bytes()
    assert place.limits() == LIMITS
    place.shell(f"{restore()}; {restore()}", kind)
    assert place.state() == {}


def test_there_was_no_folder(make_dac):
    place = Place(make_dac(provider="http://127.0.0.1:9/v1", start=False), content=None)
    place.folder.rmdir()
    p = place.shell(f"{restore()}; {prep()}; {prep()}")
    assert b"nothing to restore" in p.stdout and place.env_file.exists()
    place.shell(restore())
    assert not place.folder.exists()


def dying(place, at, after):
    """A folder for PATH whose ln, mv, cp, rm and sync kill their caller at the `at`th call of one
    of them, before or after what they do."""
    folder = place.dac.folder / "dying"
    folder.mkdir()
    for name in ("ln", "mv", "cp", "rm", "sync"):
        program = shutil.which(name)
        work = f'"{program}" "$@"'
        (folder / name).write_text(
            "#!/bin/sh\n"
            f"n=$(cat {folder}/calls 2>/dev/null || echo 0); n=$((n + 1)); echo $n >{folder}/calls\n"
            f'if [ "$n" -eq {at} ]; then {work if after else ":"}; kill -9 $PPID; exit 1; fi\n'
            f"exec {work}\n"
        )
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("content, after", [(BEFORE, False), (BEFORE, True), (None, True)])
def test_a_death_at_any_step(make_dac, content, after):
    """The env file is always whole: one that was there, or one with the limits. What is sourced
    next gets through, and restore brings back what was there."""
    place = Place(make_dac(provider="http://127.0.0.1:9/v1", start=False), content)
    died = {}
    for first in (prep, restore):
        for at in range(1, 40):
            if first is restore:
                place.shell(prep())
            folder = dying(place, at, after)
            env = place.env(PATH=f"{folder}:{os.environ['PATH']}")
            p = place.shell(first(), check=False, env=env)
            shutil.rmtree(folder)
            now = place.env_file.read_bytes() if place.env_file.exists() else None
            if p.returncode == 0:
                place.shell(restore())
                break
            died[first] = at
            assert now == content or b"<<< temporary" in now, f"{first.__name__} died at step {at}"
            if at % 2:
                place.shell(f"set -eu; {prep()}")
                assert place.env_file.read_bytes().count(b"<<< temporary") == 1
            place.shell(f"set -eu; {restore()}")
            assert place.state() == place.was, f"{first.__name__} died at step {at}"
    assert died[prep] >= 4 and died[restore] >= 2


def test_the_shell_is_killed_in_between(place):
    p = place.shell(f"{prep()}; kill -9 $$", "bash", check=False)
    assert p.returncode == -9 and place.limits() == LIMITS
    p = place.shell(prep(), "bash")
    assert b"was prepared before" in p.stdout
    place.shell(restore())
    assert place.state() == place.was


def test_no_moment_without_a_whole_file(place):
    stop, seen = threading.Event(), set()

    def read():
        while not stop.is_set():
            seen.add(place.env_file.read_bytes())  # raises if it is not there

    reader = threading.Thread(target=read)
    reader.start()
    place.shell(f"for i in 1 2 3; do {prep()}; {restore()}; done")
    stop.set()
    reader.join()
    assert len(seen) == 2 and BEFORE in seen


def test_what_was_edited_during_the_test_is_put_aside(place):
    place.shell(prep())
    text = place.env_file.read_bytes().replace(b"COALESCE_ENABLED=1", b"COALESCE_ENABLED=0")
    place.env_file.write_bytes(text)
    place.shell(prep())
    assert b"COALESCE_ENABLED=0" in place.env_file.read_bytes() and place.limits() == LIMITS
    p = place.shell(restore())
    assert b"was edited during the test" in p.stdout
    state = place.state()
    assert b"COALESCE_ENABLED=0" in state.pop("dac.env.edited-in-ttft-test")[0]
    assert state == place.was


def test_a_higher_limit_and_none_stay(place):
    place.env_file.write_text("PERPLEXITY_RPS=0\nPERPLEXITY_BURST=5000\n")
    p = place.shell(prep())
    assert b"PERPLEXITY_RPS 0 stays (no limit)" in p.stdout and b"PERPLEXITY_BURST 5000 stays" in p.stdout
    assert place.limits()["perplexity"] == {"rps": "0", "burst": "5000", "concurrency": "256"}
    place.shell(restore())


def test_a_link_stays_one(place):
    real = place.folder / "real.env"
    place.env_file.rename(real)
    place.env_file.symlink_to("real.env")
    was = place.state()
    place.shell(prep())
    assert place.env_file.is_symlink() and place.limits() == LIMITS
    place.shell(restore())
    assert place.env_file.is_symlink() and place.state() == was


def test_what_cannot_be_done_is_said_and_changes_nothing(place):
    with open(place.dac.conf, "a") as f:
        f.write("nonsense = 1\n")
    p = place.shell(f"{prep()}; echo status $?", check=False)
    assert b"status 1" in p.stdout and b"nonsense" in p.stderr and b"->" in p.stderr
    p = place.shell(f"set -e; {prep()} || echo refused", check=False)
    assert p.stdout == b"refused\n"
    assert place.state() == place.was
    write_ini(place.dac.conf, place.dac.sections)
    p = place.shell(f"{prep()}; echo status $?", check=False, env=place.env(DAC_TEST_RPS="much"))
    assert b"status 1" in p.stdout and place.state() == place.was
    p = place.shell(f"{prep()}; echo status $?", check=False, env=place.env(DAC_TEST_RPS="9999999"))
    assert b"status 1" in p.stdout and b"DAC_TEST_" in p.stderr
    assert place.state() == place.was


@pytest.mark.parametrize("value", ["{}/dac.env", '"{}/dac.env" ; ours', "my etc/dac.env ; ours"])
def test_restore_needs_no_good_configuration(place, value):
    """The env file is found however its name is written."""
    folder = place.folder.rename(place.dac.folder / "my etc")
    place.folder, place.env_file = folder, folder / "dac.env"
    was = str(place.dac.sections["server"]["env_file"])
    good = place.dac.conf.read_text().replace(was, value.format(folder))
    place.dac.conf.write_text(good)
    place.shell(prep())
    assert place.limits() == LIMITS
    place.dac.conf.write_text(good + "nonsense = 1\n")
    place.shell(f"cd /; {restore()}")
    assert place.state() == place.was


def test_restore_does_not_guess_that_all_is_well(place):
    """Where the configuration cannot say which file it was, there may be limits in place."""
    place.shell(prep())
    place.dac.conf.write_text("nonsense\n")
    p = place.shell(f"{restore()}; echo status $?", check=False)
    assert p.stdout == b"status 1\n" and b"DAC_ENV_FILE=FILE" in p.stderr
    place.shell(restore(), env=place.env(DAC_ENV_FILE=str(place.env_file)))
    assert place.state() == place.was


def test_two_instances(make_dac):
    """Each with its own file: DAC_CONF says which."""
    places = [Place(make_dac(provider="http://127.0.0.1:9/v1", start=False)) for _ in range(2)]
    places[1].shell(prep())
    assert places[0].state() == places[0].was and places[1].limits() == LIMITS
    p = places[0].shell(restore())
    assert b"nothing to restore" in p.stdout and places[1].limits() == LIMITS
    places[1].shell(restore())
    assert places[1].state() == places[1].was
