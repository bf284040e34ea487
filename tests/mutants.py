"""Mutation testing over a sample: do the tests notice small faults in the code? `make mutants` runs it.

A mutant is the code with one small fault, for example `<=` in place of `<`. Lines of a package are drawn at random,
one mutant of each line is made in a copy of the project, and the tests that run the line are run. A mutant that no
test notices survives. `coverage_map.py` selects the tests. Its map is kept in build/mutants/map.json: after a change
of a test file that file is run again, after a change of the code all are.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter, defaultdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from coverage_map import BUILD, OPTIONS, ROOT, Selector, environment, load_map
from mutations import PACKAGES, Mutant, mutants

EQUIVALENT = ROOT / "tests" / "equivalent_mutants.yaml"

FLOOR = 0.9
"""Share of the mutants that the tests must notice."""

TEST_SECONDS = 60.0
"""Seconds after which a test hangs: the mutant is noticed."""

FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", re.MULTILINE)
"""A line of pytest's summary that names a test."""


class Tree:
    """A copy of the project, in which one file at a time is changed, and a process that runs tests on it."""

    def __init__(self, folder: Path) -> None:
        """Copies the files that git knows or would add."""
        self.folder, self.log, self.select = folder, folder / "pytest.log", folder / "tests.txt"
        shutil.rmtree(folder, ignore_errors=True)
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(command, cwd=ROOT, text=True).split("\0"):
            if name and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        self.process = subprocess.Popen(
            [sys.executable, folder / "tests" / "warm_pytest.py"],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, tests: list[str], *arguments: str, limit: float | None = None) -> tuple[int | None, list[str]]:
        """The exit status of pytest, None at the limit (s); and the tests that failed."""
        self.select.write_text("\n".join(tests))
        shutil.rmtree(self.folder / ".hypothesis", ignore_errors=True)  # no examples from other mutants
        request = {"arguments": [*OPTIONS, *arguments, f"@{self.select.name}"], "log": str(self.log), "limit": limit}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        status = json.loads(self.process.stdout.readline())
        return status, FAILED.findall(self.log.read_text(errors="replace"))

    def write(self, name: str, content: bytes) -> None:
        """Change a file."""
        file = self.folder / name
        file.write_bytes(content)
        shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)  # it tells files by whole seconds and size


def outcome(tree: Tree, mutant: Mutant, tests: list[str], seconds: float) -> tuple[str, str]:
    """What becomes of a mutant, "killed", "timed out", "survived" or "not covered"; and the test that failed."""
    if not tests:
        return "not covered", ""
    original = (tree.folder / mutant.file).read_bytes()
    tree.write(mutant.file, mutant.apply(original))
    limits = ("-o", f"faulthandler_timeout={TEST_SECONDS}", "-o", "faulthandler_exit_on_timeout=true")
    status, failed = tree.run(tests, "-x", *limits, limit=3 * seconds + 2 * TEST_SECONDS)
    tree.write(mutant.file, original)
    if status == 0:
        return "survived", ""
    if status == 5 or "no match in any of" in tree.log.read_text(errors="replace"):
        raise RuntimeError(f"a test of the map does not exist: see {tree.log}")
    return "timed out" if status is None else "killed", failed[0] if failed else ""


def is_excused(mutant: Mutant, entries: list[dict[str, str]]) -> bool:
    """Whether a mutant is listed as one that behaves as the code does."""
    return any(
        (entry["file"], entry["line"]) == (mutant.file, mutant.code)
        and entry.get("mutation", mutant.mutation) == mutant.mutation
        for entry in entries
    )


def draw(candidates: list[Mutant], n: int, seed: int) -> list[Mutant]:
    """n lines at random, and one mutant of each."""
    rng = random.Random(seed)
    lines: dict[tuple[str, int], list[Mutant]] = defaultdict(list)
    for mutant in candidates:
        lines[mutant.file, mutant.line].append(mutant)
    return [rng.choice(lines[place]) for place in rng.sample(sorted(lines), min(n, len(lines)))]


def main() -> int:
    """Run the command; exit status 1 when fewer mutants than `FLOOR` are noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", help="package, folder or file, e.g. features, recsys/towers")
    parser.add_argument("--sample", type=int, default=100, help="number of lines")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    selector = Selector(load_map(sources))
    equivalent = yaml.safe_load(EQUIVALENT.read_text())
    omitted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]["run"]["omit"]
    files = [path.relative_to(ROOT).as_posix() for path in sources]
    files = [name for name in files if not any(fnmatch(name, pattern) for pattern in omitted)]
    chosen = [name for name in files if name == options.package or name.startswith(options.package.rstrip("/") + "/")]
    candidates = [mutant for name in chosen for mutant in mutants(name, (ROOT / name).read_bytes())]
    candidates = [mutant for mutant in candidates if not is_excused(mutant, equivalent)]
    if not candidates:
        parser.error(f"{options.package}: no code to mutate there")
    tree = Tree(BUILD / "tree")
    report, begin = list[dict[str, Any]](), time.monotonic()
    for mutant in draw(candidates, options.sample, options.seed):
        tests = selector.tests(mutant)
        start = time.monotonic()
        result, by = outcome(tree, mutant, tests, sum(selector.seconds[test] for test in tests))
        report.append(mutant.as_dict() | {"outcome": result, "tests": len(tests), "by": by})
        print(
            f"{result:11} {time.monotonic() - start:4.0f} s  {mutant.file}:{mutant.line}  {mutant.mutation}",
            flush=True,
        )
        name = f"{options.package.replace('/', '-')}-{options.seed}.json"
        (BUILD / name).write_text(json.dumps(report, indent=1))
    killers = sorted({entry["by"] for entry in report if "::" in entry["by"]})
    for test in set(tree.run(killers)[1]) & set(killers) if killers else ():
        print(f"{test} fails without a mutant, too: what it killed counts as survived")
        report = [entry | {"outcome": "survived"} if entry["by"] == test else entry for entry in report]
    counts = Counter(entry["outcome"] for entry in report)
    noticed = counts["killed"] + counts["timed out"]
    minutes = (time.monotonic() - begin) / 60
    print(f"\n{noticed} of {len(report)} noticed ({noticed / len(report):.0%}), {dict(counts)}, {minutes:.0f} min")
    return int(noticed < FLOOR * len(report))


if __name__ == "__main__":
    sys.exit(main())
