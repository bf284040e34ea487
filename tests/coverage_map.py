"""Which tests run a line: each test is run once under coverage."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import coverage
from mutations import PACKAGES, Mutant

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "mutants"

OPTIONS = ("-q", "-p", "no:cacheprovider", "--hypothesis-seed=0")
"""Of every run of pytest."""

BUDGET_SECONDS = 90.0
"""The tests of a line are run until this sum of the seconds that they need; the rest of a long list is left out."""


def environment(tree: Path) -> dict[str, str]:
    """The environment of a run of tests on a tree: its packages, one thread, no colours."""
    return os.environ | {
        "PYTHONPATH": f"{tree}:{tree / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "NO_COLOR": "1",
    }


class Recorder:
    """A plugin of pytest: seconds of each test that passes, and coverage in the processes that tests start."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Add the seconds of one phase of a test."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if not report.passed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write the seconds."""
        passed = {test: round(s, 3) for test, s in self.seconds.items() if test not in self.failed}
        (BUILD / "seconds.json").write_text(json.dumps(passed))


def pytest_configure(config: Any) -> None:
    """Called by pytest when it loads this file with -p."""
    os.environ["COVERAGE_PROCESS_START"] = str(BUILD / "coveragerc")
    config.pluginmanager.register(Recorder())


def digest(paths: list[Path]) -> str:
    """A hash of the contents of files."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def load_map(sources: list[Path]) -> dict[str, dict[str, Any]]:
    """Test file -> {hash, tests: {name: [seconds, {source file: lines}]}}, brought up to date."""
    code = digest(sources)
    helpers = [
        path
        for path in sorted((ROOT / "tests").glob("*.py"))
        if not path.name.startswith(("test_", "muta", "coverage_", "warm_"))
    ]
    wanted = {
        f"tests/{path.name}": code + digest([*helpers, path]) for path in sorted((ROOT / "tests").glob("test_*.py"))
    }
    file = BUILD / "map.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known = {name: entry for name, entry in known.items() if wanted.get(name) == entry["hash"]}
    stale = [name for name in wanted if name not in known]
    if stale:
        print(f"running {len(stale)} test files to see which lines their tests run", flush=True)
        for name, measured in measure(stale).items():
            known[name] = {"hash": wanted[name], "tests": measured}
        file.write_text(json.dumps(known))
    return known


def measure(files: list[str]) -> dict[str, dict[str, Any]]:
    """Run test files under coverage: test file -> {test: [seconds, {source file: lines}]}, of the tests that pass."""
    shutil.rmtree(BUILD / "coverage", ignore_errors=True)
    (BUILD / "coverage").mkdir(parents=True)
    settings = {
        "data_file": BUILD / "coverage" / "data",
        "source": "".join(f"\n  {ROOT / package}" for package in PACKAGES),
        "context": "${PYTEST_CURRENT_TEST-}",  # of the test that starts the process
        "parallel": "true",
        "sigterm": "true",
        "disable_warnings": "no-data-collected,module-not-measured,module-not-imported",
    }
    lines = [f"{key} = {value}" for key, value in settings.items()]
    (BUILD / "coveragerc").write_text("\n".join(["[run]", *lines]))
    cover = ["--cov", f"--cov-config={BUILD / 'coveragerc'}", "--cov-context=test", "--cov-report="]
    command = [sys.executable, "-m", "pytest", *OPTIONS, "-p", "coverage_map", *cover, *files]
    with (BUILD / "map.log").open("wb") as log:
        subprocess.run(command, cwd=ROOT, env=environment(ROOT), stdout=log, stderr=log, check=False)
    seconds = json.loads((BUILD / "seconds.json").read_text())
    out: dict[str, dict[str, Any]] = {name: {} for name in files}
    for test, spent in seconds.items():
        out[test.partition("::")[0]][test] = [spent, defaultdict(set)]
    parts = sorted((BUILD / "coverage").glob("data*"))
    for part in parts:
        data = coverage.CoverageData(str(part))
        try:
            data.read()
        except coverage.exceptions.CoverageException:
            continue  # of a process that was killed while it wrote
        for path in data.measured_files():
            source = Path(path).relative_to(ROOT).as_posix()
            for line, contexts in data.contexts_by_lineno(path).items():
                for context in contexts:
                    test = context.rpartition("|" if "|" in context else " (")[0]
                    if test in seconds:
                        out[test.partition("::")[0]][test][1][source].add(line)
    for tests in out.values():
        for entry in tests.values():
            entry[1] = {source: sorted(numbers) for source, numbers in entry[1].items()}
    return out


class Selector:
    """Chooses the tests of a line."""

    def __init__(self, entries: dict[str, dict[str, Any]]) -> None:
        self.seconds: dict[str, float] = {}
        self.by_line: dict[tuple[str, int], list[str]] = defaultdict(list)
        self.by_file: dict[str, dict[str, int]] = defaultdict(dict)  # file -> test -> number of lines
        for entry in entries.values():
            for test, (seconds, files) in entry["tests"].items():
                self.seconds[test] = seconds
                for source, lines in files.items():
                    self.by_file[source][test] = len(lines)
                    for line in lines:
                        self.by_line[source, line].append(test)

    def tests(self, mutant: Mutant) -> list[str]:
        """The tests that run a line; where none does (constants of a module), those that run its file.

        The tests of the files that are named for the file, test_PACKAGE_FILE[_…].py, come first. Then comes the
        cheapest test of each test file, which runs the most lines of the file in a second, then the second of each,
        and so on.
        """
        lines = range(mutant.first, mutant.last + 1)
        found = {test for line in lines for test in self.by_line[mutant.file, line]}
        own = mutant.file.removesuffix(".py").split("/")
        own_files = (f"tests/test_{own[0]}_{own[-1]}_", f"tests/test_{own[0]}_{'_'.join(own[-2:])}_")

        def cost(test: str) -> float:
            return self.seconds[test] / self.by_file[mutant.file][test]

        ranks, order = Counter[str](), dict[str, tuple[bool, int, float]]()
        for test in sorted(found or self.by_file[mutant.file], key=cost):
            file = test.partition("::")[0]
            is_own = f"{file.removesuffix('.py')}_".startswith(own_files)
            order[test] = not is_own, ranks[file], cost(test)
            ranks[file] += 1
        out, total = list[str](), 0.0
        for test in sorted(order, key=lambda test: order[test]):
            if total + self.seconds[test] > BUDGET_SECONDS and out:
                break
            out.append(test)
            total += self.seconds[test]
        return out
