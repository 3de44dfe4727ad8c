"""The operator's page of the store (docs/store.md) speaks of log lines, metrics, settings and pages
that there are."""

import re

import pytest

from lib.dacd import ROOT
from lib.service import run_dacd

PAGE = ROOT / "docs/store.md"


def section(title):
    return PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]


def source():
    """All strings of the program, those in several pieces as one, numbers and names blanked."""
    text = "\n".join(p.read_text() for p in (ROOT / "src").rglob("*.c"))
    text = re.sub(r'"\s*"', "", re.sub(r'%" PRIu(32|64) "', "%d", text))
    return re.sub(r"\\?\"?%[-.0-9*]*(?:l|ll|z|h)*[a-z]\\?\"?", "%", text)


def test_each_line_of_the_log_is_one_that_is_logged():
    lines = re.findall(r"^\| (`.+?) \|", section("What the log says"), re.M)
    assert len(lines) > 15
    have = source()
    for quoted in re.findall(r"`([^`]+)`", "\n".join(lines)):
        for part in quoted.split("..."):
            words = re.sub(r"\b[NM]\b", "%", part).strip()
            assert words in have, f"{quoted!r}: no such line is logged ({words!r})"


async def test_each_metric_is_one_that_there_is(dac):
    names = set(re.findall(r"\bdac_[a-z_]+", PAGE.read_text()))
    text = (await dac.get("/metrics")).text
    assert len(names) > 8
    for name in names:
        assert re.search(rf"^(# TYPE )?{name}(\{{| )", text, re.M), name


def test_each_setting_is_one_that_there_is():
    text = run_dacd("--help")[1] + (ROOT / "README.md").read_text()
    for name in ("thread_cache", "spool_max", "commit_timeout", "done_timeout"):
        assert f"`{name}`" in PAGE.read_text() and name in text


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        heads = [re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", file.read_text(), re.M)]
        assert not anchor or anchor in heads, target
