"""The manual pages name every option and command that --help knows, and no other."""

import re
import subprocess

import pytest
from lib.dacd import BUILD, ROOT

OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]+|-[a-zA-Z])(?![\w-])")
PAGES = {"dacd": 8, "dacctl": 1, "dac-mock": 1}


def page(name):
    text = (ROOT / f"docs/man/{name}.{PAGES[name]}").read_text()
    text = text.split(".SH NAME", 1)[1]
    return re.sub(r"\\f[BIRP]", "", text.replace("\\-", "-"))


def spoken(name):
    """What the program says of itself."""
    return subprocess.run([BUILD / name, "-h" if name == "dacd" else "--help"], capture_output=True, text=True, check=True).stdout


def options(text):
    return set(OPTION.findall(text))


@pytest.mark.parametrize("name", PAGES)
def test_options(name):
    said = options(spoken(name))
    assert len(said) >= 3
    written = options(page(name))
    assert said - written == set()
    # Short names of other programs' do not stand in ours.
    assert {o for o in written if o.startswith("--")} - said - {"--help"} == set()


def test_commands_of_dacctl():
    said = set(re.findall(r"^  ([a-z][a-z-]*)(?: [A-Z]+| \w+)?  ", spoken("dacctl"), re.M))
    assert {"status", "migrate"} <= said
    written = set(re.findall(r"^\.(?:B|BI|BR) ([a-z][a-z-]*)\b", page("dacctl").split(".SH COMMANDS")[1].split(".SH OPTIONS")[0], re.M))
    assert said <= written, said - written


def test_pages_that_are_installed_lead_to_such():
    pages = set(re.findall(r"\bdocs/([a-z]+\.md)\b", (ROOT / "Makefile").read_text()))
    assert {"runbook.md", "install.md"} <= pages
    for name in pages:
        linked = set(re.findall(r"\]\(([a-z]+\.md)[)#]", (ROOT / "docs" / name).read_text()))
        assert linked <= pages, (name, linked - pages)
