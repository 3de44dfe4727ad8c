"""The steps of .github/workflows/ttft-check.yml, run as they stand, in a copy of the tree with
ports of its own: they pass with a quick provider and fail with a slow one."""

import os
import re
import shutil
import subprocess
import textwrap

import pytest

from lib.dacd import BUILD, ROOT, free_port

WORKFLOW = ROOT / ".github/workflows/ttft-check.yml"
# What of the tree the steps need, the built programs included, so that `make` finds all done.
TREE = [
    "Makefile", "aclocal.m4", "configure", "configure.ac", "config.h", "config.h.in", "config.mk",
    "config.mk.in", "config.status", "src", "shm", "tools", "tests/unit", "tests/shm", "tests/system",
]  # fmt: skip


def read_workflow():
    """(shell, variables, [(name, condition, commands)]) of its only job; the subset of YAML that
    stands there. What is `uses:` is GitHub's."""
    text = WORKFLOW.read_text()
    (shell,) = re.findall(r"^    defaults:\n      run:\n        shell: (\w+)$", text, re.M)
    (block,) = re.findall(r"^    env:\n((?:      \w+: .*\n)+)", text, re.M)
    variables = dict(re.findall(r"^      (\w+): (.*)$", block, re.M))
    steps = []
    for step in re.split(r"^      - ", text.split("\n    steps:\n")[1], flags=re.M)[1:]:
        if step.startswith("uses:"):
            continue
        name = re.search(r"^name: (.*)$", step, re.M)[1]
        condition = re.search(r"^        if: (.*)$", step, re.M)
        one = re.search(r"^        run: (?!\|)(.+)$", step, re.M)
        many = re.search(r"^        run: \|\n((?:          .*\n|\n)+)", step + "\n", re.M)
        steps.append((name, condition and condition[1], one[1] if one else textwrap.dedent(many[1])))
    return shell, variables, steps


@pytest.fixture
def tree(tmp_path):
    if BUILD != ROOT / "build" or not (ROOT / "config.status").exists() or not WORKFLOW.exists():
        pytest.skip("needs the normal build of a working copy")
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in TREE:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", ROOT / name, copy / name], check=True)
    # Objects are not linked anew while the programs are newer; so their times go along.
    only = shutil.ignore_patterns("asan", "crash", "coverage", "fuzz", "tsan", "results", "lint", "model")
    shutil.copytree(BUILD, copy / "build", ignore=only, symlinks=True)
    return copy


def run(tree, **changed):
    """As GitHub does it: one shell a step, stops at the first failure but for the steps that are
    for that; returns ({step: exit status}, everything written)."""
    shell, variables, steps = read_workflow()
    assert shell == "bash"
    assert set(changed) <= set(variables)
    env = {
        "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}", "LANG": "C.UTF-8", "CI": "true",
        "GITHUB_WORKSPACE": str(tree), **variables, **changed,
    }  # fmt: skip
    ended, written, failed = {}, "", False
    for name, condition, commands in steps:
        wanted = {None: not failed, "failure()": failed, "always()": True}[condition]
        if not wanted:
            continue
        (tree / "step.sh").write_text(commands)
        with open(tree / "step.out", "w+") as out:
            p = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "step.sh"],
                cwd=tree, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=90, check=False,
            )  # fmt: skip
        written += f"## {name}\n" + (tree / "step.out").read_text()
        ended[name] = p.returncode
        failed = failed or p.returncode != 0
    return ended, written


def own(questions):
    return {"DAC_PORT": str(free_port()), "MOCK_PORT": str(free_port()), "QUESTIONS": str(questions)}


def test_the_workflows_own_steps(tree):
    ended, written = run(tree, **own(20))
    assert ended == dict.fromkeys(["install", "build", "start", "measure", "judge", "stop"], 0), written
    assert re.search(r"^p95 2\d\d(\.\d)? ms: within 1500 ms$", written, re.M), written
    # The same programs with a provider that is slow to begin.
    ended, written = run(tree, **own(5), MOCK_ANSWER="ttft=1600ms tokens=2")
    assert ended.pop("judge") == 1 and "above what is allowed" in written, written
    assert ended == dict.fromkeys(["install", "build", "start", "measure", "logs", "stop"], 0), written
    # And with one that does not answer: nothing measured is no pass.
    ended, written = run(tree, **own(2), MOCK_ANSWER="status=500")
    assert ended["judge"] == 1 and "no p95 was measured" in written and ended["stop"] == 0, written
