"""`dacctl config`: what is in effect and where it came from, what a setting is, and what a
reload would do; `dacd -t` agrees."""

import json
import os
import re
import subprocess

import pytest

from lib.dacd import BUILD, ROOT, write_ini
from lib.provider import say

pytestmark = pytest.mark.own_store

SECRETS = ("sk-canary-1", "hunter2")
ENV = {"PATH": os.environ["PATH"]}


@pytest.fixture
def conf(tmp_path):
    """Writes a configuration with secrets in it; conf(sections, name=...) is its path."""
    key = tmp_path / "key"
    key.write_text(SECRETS[0] + "\n")
    key.chmod(0o600)
    (tmp_path / "dac.env").write_text("# flags\nSTREAM_FANOUT_ENABLED=0\n")

    def write(changes=None, name="dac.conf"):
        sections = {
            "server": {"env_file": "dac.env", "workers": 2},
            "store": {"postgres": f"host=127.0.0.1 port=1 password={SECRETS[1]}"},
            "provider acme": {"base_url": "http://127.0.0.1:1/v1", "api_key_file": "key"},
        }
        for section, settings in (changes or {}).items():
            sections.setdefault(section, {}).update(settings)
        write_ini(tmp_path / name, sections)
        return tmp_path / name

    return write


def run(program, *args, exit=0, env=None):
    p = subprocess.run(
        [BUILD / program, *args], capture_output=True, text=True, check=False, timeout=60,
        env={**ENV, **(env or {})},
    )  # fmt: skip
    assert p.returncode == exit, p.stdout + p.stderr
    for secret in SECRETS:
        assert secret not in p.stdout + p.stderr, f"{program} {args} shows a secret"
    return p


def config(*args, **kw):
    return run("dacctl", "config", *args, **kw)


@pytest.mark.smoke
def test_show_names_where_each_value_came_from(conf):
    path = conf()
    shown = config("show", "-c", path, env={"ACME_BURST": "7", "STREAM_FANOUT_ENABLED": "1"}).stdout
    lines = {" ".join(line.split()) for line in shown.splitlines()}
    assert f"workers = 2 ; {path}:3" in lines
    assert "body_max = 1m ; default" in lines
    assert "burst = 7 ; environment ACME_BURST" in lines
    assert f"; STREAM_FANOUT_ENABLED = off ; env file {path.parent}/dac.env:2" in lines
    assert f"postgres = *** ; {path}:6" in lines
    assert "; API key: ***" in lines
    tested = run("dacd", "-t", "-c", path, env={"ACME_BURST": "7"})
    assert tested.stdout == shown and "the configuration is good" in tested.stderr


def test_show_as_json(conf):
    path = conf()
    said = json.loads(config("--json", "show", "-c", path, env={"ACME_RPS": "0.5"}).stdout)
    assert said["file"] == str(path) and said["problems"] == []
    by_name = {(s["provider"], s["name"]): s for s in said["settings"]}
    assert by_name["acme", "rps"] == {
        "name": "rps", "section": "provider", "provider": "acme", "value": "0.5",
        "source": "environment", "file": None, "line": None, "variable": "ACME_RPS",
    }  # fmt: skip
    workers = by_name[None, "workers"]
    assert (workers["source"], workers["file"], workers["line"]) == ("file", str(path), 3)
    fanout = by_name[None, "STREAM_FANOUT_ENABLED"]
    assert (fanout["value"], fanout["source"], fanout["line"]) == ("off", "env_file", 2)


def test_problems_are_told_all_at_once(conf):
    path = conf({"server": {"wrokers": 3, "body_max": "1x"}, "flight": {"error_ttl": "2h"}})
    expected = [
        f'{path}:4: unknown setting "wrokers" in [server]; did you mean "workers"?',
        f'{path}:5: body_max: "1x" is not a size like 4096, 64k or 48m; choose 1k to 64m',
        f'{path}:15: error_ttl: "2h" is out of range; choose 0s to 1h',
    ]
    for p in (run("dacd", "-t", "-c", path, exit=1), config("show", "-c", path, exit=2)):
        assert p.stderr.splitlines()[:3] == expected and p.stdout == ""
    said = json.loads(config("show", "--json", "-c", path, exit=2).stdout)
    assert [f"{p['file']}:{p['line']}: {p['text']}" for p in said["problems"]] == expected
    assert "settings" not in said
    config("diff", path, "-c", conf(name="good.conf"), exit=2)


def test_explain(conf):
    assert "range     1 to 28, or auto" in config("explain", "server.workers").stdout
    said = json.loads(config("explain", "ACME_RPS", "--json").stdout)["settings"]
    assert [(s["name"], s["reload"], s["variable"]) for s in said] == [("rps", "in_place", "NAME_RPS")]
    assert 'did you mean "workers"' in config("explain", "wrokers", exit=1).stderr
    everything = json.loads(config("explain", "--json").stdout)["settings"]
    shown = json.loads(config("show", "--json", "-c", conf()).stdout)["settings"]
    assert {s["name"] for s in everything} == {s["name"] for s in shown}


def test_diff_says_what_a_reload_would_do(conf):
    old = conf()
    new = conf(
        {
            "server": {"workers": 3, "log_level": "debug"},
            "memory": {"shm_size": "64m"},
            "store": {"postgres": "host=127.0.0.1 port=1 password=other"},
        },
        name="new.conf",
    )
    assert config("diff", "-c", old, old).stdout == ""
    assert config("diff", "-c", old, new, exit=1).stdout.splitlines() == [
        "new workers  server.workers: 2 -> 3",
        "in place     server.log_level: info -> debug",
        "restart      memory.shm_size: 48m -> 64m",
        "restart      store.postgres: *** -> ***",
        "",
        "A reload changes 1 in running processes.",
        "A reload starts new workers for 1; the old ones end their streams first.",
        "Only a restart of the service changes 2.",
    ]
    said = json.loads(config("--json", "diff", "-c", old, new, exit=1).stdout)["changes"]
    assert said[2] == {"name": "memory.shm_size", "from": "48m", "to": "64m", "reload": "restart"}
    of_defaults = config("diff", "-c", old, exit=1).stdout
    assert "provider.acme.base_url: (empty) -> http://127.0.0.1:1/v1" in of_defaults
    assert "body_max" not in of_defaults
    config("diff", "-c", old, "/none/dac.conf", exit=2)


def test_wrong_calls_exit_otherwise_than_answers():
    config(exit=2)
    config("shwo", exit=2)
    config("show", "x", exit=2)
    config("diff", "x", "y", exit=2)


async def test_a_key_by_credential_is_the_service_s_alone(make_dac, mock, tmp_path):
    """As LoadCredential= has it: the service finds it by name, others look on without it."""
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    (folder / "acme").write_text(SECRETS[0] + "\n")
    env = {"CREDENTIALS_DIRECTORY": str(folder)}
    dac = make_dac({"provider perplexity": {"api_key_file": "credential:acme"}}, env=env, workers=1)
    await dac.ask_json(await dac.thread(), say(tokens=1))
    assert (await mock.log("request"))[0]["headers"]["authorization"] == f"Bearer {SECRETS[0]}"
    assert SECRETS[0] not in dac.log
    shown = config("show", "-c", dac.conf)
    assert "; API key: the service's alone" in shown.stdout and "credential:acme" in shown.stdout
    assert 'credential "acme" is given to the service alone' in shown.stderr
    assert "; API key: ***" in run("dacd", "-t", "-c", dac.conf, env=env).stdout
    refused = run("dacd", "-c", dac.conf, exit=1)
    assert "LoadCredential=acme:FILE" in refused.stderr
    (folder / "acme").unlink()
    run("dacd", "-t", "-c", dac.conf, env=env, exit=1)


def test_a_missing_file_says_what_to_do(tmp_path):
    said = run("dacd", "-t", "-c", tmp_path / "dac.conf", exit=1).stderr
    assert said.startswith(
        f"{tmp_path}/dac.conf: could not read the configuration: No such file or directory; "
        "create it, or name another with -c FILE\n"
    )


# --- the sample and the manual ---

SAMPLE = ROOT / "etc/dac.conf.sample"
PAGE = ROOT / "docs/man/dac.conf.5"
CLASSES = {
    "in_place": ("", "A reload changes it in place."),
    "new_workers": ("new workers", "A reload starts new workers."),
    "restart": ("restart", "A change needs a restart."),
}


def table():
    return json.loads(config("explain", "--json").stdout)["settings"]


def flat(text):
    """Without comment signs and line breaks."""
    return " ".join(re.sub(r"^\s*;", "", text, flags=re.M).split())


def test_the_files_are_those_of_the_program():
    hint = "run `make manual`"
    assert SAMPLE.read_text() == config("sample").stdout, hint
    (listed,) = re.findall(r'^\.\\" begin\n(.*)^\.\\" end$', PAGE.read_text(), re.M | re.S)
    assert listed == config("manual").stdout, hint


def test_both_tell_all_that_the_table_has():
    """By another way than the one that they were made."""
    sample = {m[1]: m[0] for m in re.finditer(r"^;? *([a-zA-Z_0-9]+) ?=.*\n(?: +; .*\n)*", SAMPLE.read_text(), re.M)}
    page = PAGE.read_text().replace("\\-", "-").replace("\\&", "")
    page = {m[1]: m[0] for m in re.finditer(r"^\.TP\n\\fB(\w+)\\fR.*\n(?:[^.].*\n)+", page, re.M)}
    assert [*sample] == [*page] == [s["name"] for s in table()]
    for s in table():
        name, head = s["name"], page[s["name"]].splitlines()[1]
        short, long = CLASSES[s["reload"]]
        if s["default"] is None:
            assert "must be set" in flat(sample[name]) and "Must be set." in page[name]
        elif name not in ("listen", "sqlite"):
            equals = " = " if s["section"] else "="
            assert head == f"\\fB{name}\\fR" + (equals + s["default"] if s["default"] else "")
            assert re.match(rf"; +{name} ?= ?{re.escape(s['default'])} *;", sample[name])
        assert s["help"] in flat(sample[name]) and s["help"] + "." in page[name].splitlines()
        notes = "; ".join(n for n in (s["range"], short) if n)
        assert not notes or flat(sample[name]).endswith(notes + ")")
        assert long in page[name].splitlines()
        assert not s["range"] or f"Allowed: {s['range']}." in page[name].splitlines()


def test_the_readme_has_the_table_s_words():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", (ROOT / "README.md").read_text(), re.M)
    plain = [(n, d.strip("`"), m.replace("`", "")) for n, d, m in rows]
    in_table = [(s["name"], s["default"], s["help"]) for s in table() if s["section"]]
    assert plain == [(n, "required" if d is None else d, h) for n, d, h in in_table]


def test_commented_lines_are_the_defaults(tmp_path):
    """The sample means the same with all of its comments taken off, but for a file that may only be
    missing while nobody names it."""
    bare = re.sub(r"^; (?!env_file)(?=\w+ =)", "", SAMPLE.read_text(), flags=re.M)
    assert bare.count("\n; ") < SAMPLE.read_text().count("\n; ") - 30
    (tmp_path / "dac.conf").write_text(bare)
    differs = config("diff", "-c", tmp_path / "dac.conf", SAMPLE)
    assert differs.stdout == ""
    changes = json.loads(config("--json", "diff", "-c", SAMPLE, exit=1).stdout)["changes"]
    assert [c["name"] for c in changes] == ["provider.perplexity.base_url"]
