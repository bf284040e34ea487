"""The runner of benchmarks, and the benchmark of the check of tables."""

import io
import json
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from experiments.bench import check, runner
from experiments.bench.runner import Bar, Result
from features.errors import ConfigError, RecsysError
from recsys.cli.main import app


def measurable(*, short: bool = False, size: int = 1) -> Result:
    print("a benchmark that prints")
    return Result(
        {"size": size, "short": short, "ratio": float("nan")}, [Bar("size", size, "<=", 2), Bar("r", 0.5, ">", 1)]
    )


def unmeasurable(*, short: bool = False) -> Result:
    raise RecsysError("no data here")


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BENCHES", {"m": f"{__name__}:measurable", "u": f"{__name__}:unmeasurable"})


@pytest.mark.parametrize(
    ("value", "op", "bar", "holds"),
    [(1, "<=", 1, True), (1, "<", 1, False), (2, ">", 1, True), (1, ">=", 2, False), (0, "==", 0, True)],
)
def test_bars(value: float, op: str, bar: float, holds: bool) -> None:
    assert Bar("b", value, op, bar).to_dict() == {"name": "b", "value": value, "op": op, "bar": bar, "holds": holds}


def test_a_bar_never_holds_for_nan_and_knows_its_operators() -> None:
    assert not any(Bar("b", float("nan"), op, 1.0).holds for op in runner.OPERATORS)
    with pytest.raises(ConfigError, match="bar b: unknown operator '=<'; choose from"):
        Bar("b", 1, "=<", 1)


@pytest.mark.usefixtures("benches")
def test_the_last_line_is_one_json_object() -> None:
    result = CliRunner().invoke(app, ["bench", "m", "--json", "--short", "--size", "3"])
    assert result.exit_code == 0, "bars do not change the exit code"
    assert "a benchmark that prints" not in result.stdout
    done = json.loads(result.stdout.splitlines()[-1])
    assert done["bench"] == "m"
    assert done["figures"] == {"size": 3, "short": True, "ratio": None}
    assert [bar["holds"] for bar in done["bars"]] == [False, False]
    assert set(done["machine"]) == {"cores", "cpu", "memory_gib", "gpu"}
    assert done["versions"]["polars"] == pl.__version__


@pytest.mark.usefixtures("benches")
def test_a_table_for_people() -> None:
    result = CliRunner().invoke(app, ["bench", "m"])
    assert result.exit_code == 0
    assert "<= 2" in result.stdout


@pytest.mark.usefixtures("benches")
def test_all_lists_the_benchmarks_that_could_not_be_measured() -> None:
    done = runner.run("all", short=True)
    assert done["figures"]["m"]["size"] == 1
    assert [bar["name"] for bar in done["bars"]] == ["m: size", "m: r"]
    assert done["not_measured"] == {"u": "no data here"}
    with pytest.raises(RecsysError, match="no data here"):
        runner.run("u")


@pytest.mark.usefixtures("benches")
def test_unknown_names_and_options() -> None:
    with pytest.raises(ConfigError, match="no benchmark 'x'; choose from m, u, all"):
        runner.run("x")
    with pytest.raises(ConfigError, match="bench m: no option 'sise'; choose from size"):
        runner.run("m", sise=1)
    with pytest.raises(ConfigError, match="bench all takes no options; remove size"):
        runner.run("all", size=1)


@pytest.mark.usefixtures("benches")
@pytest.mark.parametrize("options", [["--size"], ["size", "1"], ["--size", "[1"]])
def test_malformed_options_are_rejected(options: list[str]) -> None:
    assert isinstance(CliRunner().invoke(app, ["bench", "m", *options]).exception, ConfigError)


@pytest.mark.usefixtures("benches")
def test_the_help_of_a_benchmark_lists_its_options() -> None:
    shown = CliRunner().invoke(app, ["bench", "m", "--help"]).stdout
    assert "--size INT  [1]" in shown
    assert "Benchmarks: m, u, all" in CliRunner().invoke(app, ["bench", "--help"]).stdout
    assert "Benchmarks: m, u, all" in CliRunner().invoke(app, ["bench", "check", "--help"]).stdout


@pytest.mark.usefixtures("benches")
def test_an_option_of_another_type_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"bench m: --size x: must be a whole number.*bench m --help"):
        runner.run("m", size="x")
    assert runner.run("m", size="3")["figures"]["size"] == 3


def test_figures_are_printed_as_tables_and_not_as_mappings() -> None:
    figures = {
        "items": 12_345,
        "ratio": 0.123456,
        "missing": None,
        "sizes": [1, 2.5],
        "by_model": {"a": {"hr": 0.25, "seconds": 1}, "b": {"hr": 0.5, "interval": [0.1, 0.2]}},
        "passes": [{"loss": 2.0}, {"loss": 1.0}],
        "split": {"users": 7, "note": "by time"},
        "nested": {"deep": {"x": {"y": 0.75}}, "plain": 3},
    }
    report = {"bench": "m", "short": False, "machine": {"cores": 2}, "figures": figures, "bars": []}
    console = Console(width=100, file=io.StringIO())
    console.print(runner.render(report))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for shown in ("12,345", "0.1235", "1, 2.5", "by_model", "0.1, 0.2", "split: users", "by time", "0.75", "cores 2"):
        assert shown in text
    assert "{" not in text
    assert "None" not in text


def test_every_registered_benchmark_exists() -> None:
    import importlib

    for target in runner.BENCHES.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_the_check_finds_every_planted_violation() -> None:
    result = check.run(short=True, rows=20_000)
    assert result.figures["found"] == result.figures["planted"] == dict.fromkeys(check.BAD, 40)
    assert result.figures["peak_rss_gib"] > 0.05
    assert [bar.name for bar in result.bars] == ["planted_faults_miscounted"]


def test_the_seed_decides_the_generated_tables(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        folder.mkdir()
        check.make(folder, 1_000, seed)
    first, same, different = (pl.read_parquet(folder / "events.parquet") for folder in folders)
    assert first.equals(same)
    assert not first.equals(different)
