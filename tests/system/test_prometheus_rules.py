"""etc/prometheus/dac.rules.yml: promtool's tests of it (tests/prometheus), and that it speaks of
metrics that there are."""

import re

import pytest

from lib.dacd import ROOT
from lib.prometheus import promtool, read_metrics

RULES = ROOT / "etc/prometheus/dac.rules.yml"
TESTS = sorted((ROOT / "tests/prometheus").glob("*.test.yml"))
SCRIPT = ROOT / "tools/check_alerts.sh"


def expressions():
    """{name of the rule: its expression}"""
    text = re.sub(r"^\s*#.*\n", "", RULES.read_text(), flags=re.M)
    found = {}
    for rule in re.split(r"^\s+- (?=alert:|record:)", text, flags=re.M)[1:]:
        name = re.match(r"(?:alert|record): (\S+)", rule)[1]
        expr = re.search(r"expr: (?:>-\n)?(.*?)(?=\n\s*(?:labels|annotations|for):|\Z)", rule, re.S)[1]
        found[name] = " ".join(expr.split())
    return found


def metrics_of(text):
    return set(re.findall(r"\b(?:dac|gen_ai)_[a-z0-9_]+\b", text))


def without(names, exposed):
    """Those that no series of `exposed` has."""
    return {n for n in names if n not in exposed and re.sub(r"_(bucket|sum|count)$", "", n) not in exposed}


def test_rules_are_well_formed():
    code, said = promtool("check", "rules", str(RULES))
    assert code == 0 and re.search(rf"SUCCESS: {len(expressions())} rules found", said), said


@pytest.mark.parametrize("path", TESTS, ids=lambda p: p.name.split(".")[1])
def test_promtools_tests(path):
    code, said = promtool("test", "rules", str(path))
    assert code == 0 and "SUCCESS" in said, said


def test_a_rule_that_is_wrong_is_noticed(tmp_path):
    text = RULES.read_text()
    wrong = {
        "DacErrorRate": ("> 0.01", "> 0.02"),
        "DacSlowFirstToken": (")) > 1.5", ")) > 15"),
        "DacSlowTurns": (")) > 6", ")) > 60"),
        "DacLongQueue": (")) > 1\n", ")) > 100\n"),
        "DacNotCoalescing": ("< 10\n", "< -1\n"),
        "DacDown": ("} == 0", "} == 2"),
    }
    for limit, other in wrong.values():
        assert text.count(limit) == 1, limit
        text = text.replace(limit, other)
    (tmp_path / "dac.rules.yml").write_text(text)
    test = (ROOT / "tests/prometheus/dac.limits.test.yml").read_text()
    (tmp_path / "t.yml").write_text(test.replace("../../etc/prometheus/", ""))
    code, said = promtool("test", "rules", str(tmp_path / "t.yml"))
    assert code != 0
    assert set(re.findall(r"alertname: (\w+), time", said)) >= set(wrong)


def test_each_alert_is_tested_both_ways():
    tests = "".join(p.read_text() for p in TESTS)
    for name in (n for n in expressions() if ":" not in n):
        said = re.findall(rf"alertname: {name}\n\s+exp_alerts:(.*)", tests)
        assert "" in said, f"{name} never fires"
        assert " []" in said, f"{name} never clears"


async def test_each_metric_is_one_that_there_is(dac):
    kinds, values = read_metrics((await dac.get("/metrics")).text)
    rules = expressions()
    used = metrics_of(" ".join(rules.values()))
    assert len(used) > 8 and not without(used, kinds), without(used, kinds)
    for path in TESTS:
        assert not without(metrics_of(path.read_text()), kinds), path.name
    recorded = set(re.findall(r"\bdac:[a-z0-9_:]+", " ".join(rules.values())))
    assert recorded <= set(rules), recorded - set(rules)
    # Labels, too: what is summed by le is a histogram.
    for name in re.findall(r"le\) \(rate\((\w+)_bucket", " ".join(rules.values())):
        assert kinds[name][0] == "histogram"
        assert any(s.startswith(name + "_bucket{provider=") for s in values)


@pytest.mark.parametrize("page", ["docs/metrics.md", "docs/man/dac-metrics.7"])
async def test_each_metric_of_the_pages_is_one_that_there_is(dac, page):
    kinds, _ = read_metrics((await dac.get("/metrics")).text)
    used = metrics_of((ROOT / page).read_text()) - {"gen_ai_operation_name", "gen_ai_provider_name"}
    assert len(used) > 15
    prefixes = {n for n in used if n.endswith("_") and any(k.startswith(n) for k in kinds)}
    assert not without(used - prefixes, kinds), page


def test_a_renamed_metric_would_be_noticed():
    assert without({"dac_turns_failed_total", "dac_turn_ttft_seconds_bucket"}, {"dac_turn_ttft_seconds"}) == {
        "dac_turns_failed_total"
    }


def test_limits_are_those_of_the_script():
    """One set of limits, in the script's milliseconds and Prometheus' seconds."""
    script = dict(re.findall(r"^(\w+)=([0-9.]+)$", SCRIPT.read_text(), re.M))
    rules = expressions()

    def limit(alert, sign):
        return float(re.search(rf"{sign} ([0-9.]+)", rules[alert])[1])

    assert limit("DacErrorRate", ">") == float(script["max_error_rate"])
    assert limit("DacSlowFirstToken", ">") * 1000 == float(script["max_ttft"])
    assert limit("DacSlowTurns", ">") * 1000 == float(script["max_latency"])
    assert limit("DacLongQueue", ">") * 1000 == float(script["max_queue_wait"])
    assert limit("DacNotCoalescing", "<") == float(script["min_ratio"])
