#!/usr/bin/env python3
"""What the tests reached in a folder of sources, by line and by branch.

    tools/coverage.py BUILD FOLDER [--lines PERCENT --branches PERCENT] [--missing]

Reads what gcov knows about the objects of BUILD/FOLDER. Headers of the folder count as
they were compiled into these objects. Left out of the branches: the failure of a
DAC_ASSERT, which nothing can reach. Exits 1 below the given percentages of the whole;
--missing names the lines and branches that nothing came to.
"""
import argparse
import collections
import json
import pathlib
import subprocess
import sys


def gcov(objects):
    """Yields what gcov says about each source file of each object."""
    out = subprocess.run(["gcov", "--json-format", "--stdout", "--branch-probabilities",
                          *objects], check=True, capture_output=True, text=True).stdout
    for text in filter(None, out.splitlines()):
        yield from json.loads(text)["files"]


class Source:
    """Counts per line and per branch; the same header in several objects is added up."""

    def __init__(self, path):
        self.text = path.read_text().splitlines()
        self.lines = collections.Counter()
        self.branches = collections.Counter()

    def is_assertion(self, number):
        """True on each line of a DAC_ASSERT(...);"""
        for at in range(number - 1, max(number - 4, -1), -1):
            line = self.text[at]
            if "DAC_ASSERT(" in line:
                return True
            if at < number - 1 and line.rstrip().endswith((";", "{", "}")):
                return False
        return False

    def add(self, line):
        number = line["line_number"]
        self.lines[number] += line["count"]
        if self.is_assertion(number):
            return
        for i, branch in enumerate(line["branches"]):
            self.branches[number, i] += branch["count"]

    def missing(self):
        for number in sorted(n for n, count in self.lines.items() if count == 0):
            yield f"{number}: {self.text[number - 1].strip()}"
        for number, i in sorted(b for b, count in self.branches.items() if count == 0):
            if self.lines[number]:
                yield f"{number}, branch {i}: {self.text[number - 1].strip()}"


def share(counts):
    return sum(1 for c in counts if c), len(counts)


def percent(reached, of):
    return 100 * reached / of if of else 100.0


def row(name, lines, branches):
    print(f"{name:<24} {lines[0]:>5}/{lines[1]:<5} {percent(*lines):6.1f} %"
          f"   {branches[0]:>5}/{branches[1]:<5} {percent(*branches):6.1f} %")


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument("build", type=pathlib.Path)
    options.add_argument("folder")
    options.add_argument("--lines", type=float, default=0)
    options.add_argument("--branches", type=float, default=0)
    options.add_argument("--missing", action="store_true")
    given = options.parse_args()
    objects = sorted(map(str, (given.build / given.folder).glob("*.gcno")))
    if not objects:
        sys.exit(f"coverage: {given.build}/{given.folder} has no build for coverage")

    sources = {}
    for file in gcov(objects):
        path = pathlib.Path(file["file"])
        if path.parts[:len(pathlib.Path(given.folder).parts)] != pathlib.Path(given.folder).parts:
            continue
        source = sources.setdefault(str(path), Source(path))
        for line in file["lines"]:
            source.add(line)

    print(f"{'':<24} {'lines':>11} {'':>8}   {'branches':>11}")
    for name, source in sorted(sources.items()):
        row(name, share(source.lines.values()), share(source.branches.values()))
    every = [[count for s in sources.values() for count in getattr(s, what).values()]
             for what in ("lines", "branches")]
    row("all", *map(share, every))
    if given.missing:
        for name, source in sorted(sources.items()):
            for what in source.missing():
                print(f"{name}:{what}")
    low = [f"{what} {percent(*share(counts)):.1f} % < {least:g} %"
           for what, counts, least in zip(("lines", "branches"), every,
                                          (given.lines, given.branches))
           if percent(*share(counts)) < least]
    if low:
        sys.exit("coverage: " + ", ".join(low))


main()
