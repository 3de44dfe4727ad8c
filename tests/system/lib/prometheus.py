"""Prometheus text, read strictly, and promtool, which knows what else is to hold of it."""

import re
import subprocess

from lib.dacd import ROOT

PROMTOOL = ROOT / ".venv/bin/promtool"


def promtool(*args, text=None):
    """(exit code, everything it said); without it a test cannot tell, so it fails."""
    assert PROMTOOL.exists(), "there is no promtool: tools/install-deps.sh venv"
    p = subprocess.run(
        [PROMTOOL, *args], input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
    )
    return p.returncode, p.stdout


def read_metrics(text):
    """{name: (type, help)}, {series with its labels: value}; strictly."""
    kinds, helps, values = {}, {}, {}
    for line in text.splitlines():
        if m := re.fullmatch(r"# HELP (\w+) (\S.*)", line):
            assert m[1] not in helps
            helps[m[1]] = m[2]
        elif m := re.fullmatch(r"# TYPE (\w+) (counter|gauge|histogram)", line):
            assert m[1] in helps and m[1] not in kinds, line
            kinds[m[1]] = m[2]
        else:
            m = re.fullmatch(r'(\w+)((?:\{[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*\})?) (\S+)', line)
            assert m and m[1] + m[2] not in values, line
            values[m[1] + m[2]] = float(m[3])
    return {name: (kinds[name], helps[name]) for name in kinds}, values


def histogram(values, name, labels=""):
    """[(le, count)] with the last for all, the sum; what must hold of one holds."""
    within = f"{{{labels}}}" if labels else ""
    bucket = re.escape(name + "_bucket{" + labels + ("," if labels else "")) + r'le="([^"]+)"\}'
    buckets = [(float(m[1]), v) for k, v in values.items() if (m := re.fullmatch(bucket, k))]
    assert buckets, f"no histogram {name}"
    assert [le for le, _ in buckets] == sorted(le for le, _ in buckets) and buckets[-1][0] == float("inf")
    assert [n for _, n in buckets] == sorted(n for _, n in buckets)
    assert buckets[-1][1] == values[name + "_count" + within]
    return buckets, values[name + "_sum" + within]
