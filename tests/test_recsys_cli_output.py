"""What commands print for people and as JSON, with the work itself replaced."""

import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from test_recsys_bundle_formats import MANIFEST, sealed
from toy_data import toy_config
from typer.testing import CliRunner

from features.content.embed import EmbedReport, EncoderReport
from features.content.spaces import Failure, SpaceKey
from features.errors import ConfigError
from features.tables.report import Count, Report
from recsys.cli import bench, bundle, main, options, train


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(main.app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(toy_config(tmp_path))


def test_data_get(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get(data: Any, *, force: bool, simulate: Any) -> Path:
        asked.append((data.source, force))
        return tmp_path

    monkeypatch.setattr("features.tables.sources.get", get)
    assert printed("data", "get", config).splitlines() == [
        f"folder is in {tmp_path}",
        f"next: recsys data check {config}",
    ]
    facts = {
        "name": "toy",
        "origin": "a package",
        "files": {"events.parquet": {"rows": 1_234}, "items.parquet": {"rows": 5}},
        "notes": ["a note"],
        "terms": "research",
    }
    (tmp_path / "source.json").write_text(json.dumps(facts))
    assert printed("data", "get", config, "--force").splitlines() == [
        f"folder is in {tmp_path}, from a package",
        "  events.parquet: 1,234 rows",
        "  items.parquet: 5 rows",
        "  note: a note",
        "  terms of use: research",
        f"next: recsys data check {config}",
    ]
    assert json.loads(printed("data", "get", config, "--json")) == facts | {"path": str(tmp_path)}
    assert asked == [("folder", False), ("folder", True), ("folder", False)]


def test_embed(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Failure(4, 1, "too large")
    report = EncoderReport("text", SpaceKey("m", "1", 2), 1_000, 900, 1, 80, 20, 1, (first,), (), 4.0)
    items = Report((Count("items", "i.csv", 1, 1, 0),))
    asked = []

    def embed(config: Any, *, retry: bool, refetch: bool, progress: Any) -> Any:
        asked.append((retry, refetch))
        return EmbedReport((report,), 1.0, tmp_path / "failed.parquet"), items

    monkeypatch.setattr("experiments.dataset.embed_catalog", embed)
    assert printed("embed", config).splitlines() == [
        "text: 900 of 1,000 items have it; 1 cached, 80 computed (25.0/s), 1 parts failed",
        "  item 5, part 2: too large",
        f"all failures: {tmp_path}/failed.parquet",
    ]
    found = json.loads(printed("embed", config, "--json", "--retry", "--refetch"))
    assert asked == [(False, False), (True, True)]
    assert found["items"]["counts"] == [{"table": "items", "file": "i.csv", "read": 1, "kept": 1, "rejected": 0}]
    assert found["failures"] == f"{tmp_path}/failed.parquet"
    (encoder,) = found["encoders"]
    assert (encoder["encoder"], encoder["space"], encoder["items_per_second"]) == ("text", "m@1 · 2 l2", 25.0)


def test_the_line_of_a_bundle_in_the_list() -> None:
    rows = [{"name": "a", "ndcg_at_10": {"mean": 0.5}}, {"name": "b", "ndcg_at_10": {"mean": 0.25}}]
    tables = [
        {"title": "t1", "placement": "home", "ours": "b", "rows": rows},
        {"title": "t2", "ours": "a", "rows": rows[:1]},
        {"title": "t3", "placement": "p", "ours": "c", "rows": [{"name": "c", "ndcg_at_10": {"mean": None}}]},
    ]
    manifest: dict[str, Any] = {"metrics": tables, "config": {"name": "toy"}, "data_hash": "abc"}
    assert bundle._summary(manifest) == ("toy, data abc, NDCG@10 home 0.2500, t2 0.5000, p undefined, no contents")
    space = {"space": {"model": "m", "revision": "r", "dimension": 7}}
    assert bundle._summary(manifest | {"metrics": [], "content": space}) == "toy, data abc, not evaluated, m@r · 7"


def test_the_list_has_dates_in_utc_and_marks_the_current_one(tmp_path: Path) -> None:
    config = {"name": "toy", "data": {"source": "folder"}}
    manifest = sealed(MANIFEST | {"metrics": [], "config": config, "data_hash": "abc"})
    for name, day in (("one", 2), ("two", 1)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "manifest.json"
        file.write_text(json.dumps(manifest))
        os.utime(file, (datetime(2024, 5, day, 23, 59, tzinfo=UTC).timestamp(),) * 2)
    (tmp_path / "current").symlink_to("two")
    assert printed("bundle", "list", "--bundles", str(tmp_path)).splitlines() == [
        "two  2024-05-01 23:59  toy, data abc, not evaluated, no contents  <- current",
        "one  2024-05-02 23:59  toy, data abc, not evaluated, no contents",
    ]


LISTED: dict[str, tuple[str | None, str]] = {
    "aaaaaaaaaaaaaaaa": (None, "cannot be served: cannot be read: no such file; check the path"),
    "bbbbbbbbbbbbbbbb": (
        json.dumps(MANIFEST | {"format": 12}),
        "cannot be served: format 12, this version reads 8, 9, 10, 11; a newer version wrote it: install that "
        "version",
    ),
    "cccccccccccccccc": (
        json.dumps(MANIFEST | {"format": 7}),
        "cannot be served: format 7, this version reads 8, 9, 10, 11; train again",
    ),
    "dddddddddddddddd": (
        '{"format": 11',
        "cannot be served: cannot be read: not JSON at line 1, column 14; restore it or train again",
    ),
    "eeeeeeeeeeeeeeee": (
        json.dumps(sealed(MANIFEST) | {"seconds": 7}),
        "cannot be served: does not match its own checksum; restore it or train again",
    ),
    "ffffffffffffffff": (
        json.dumps(sealed(MANIFEST)),
        "its figures cannot be read: manifest.json is not what this version writes; train again",
    ),
    "a folder": (
        "[" * 100_000,
        "cannot be served: cannot be read: not what this version writes; restore it or train again",
    ),
    "of another name": ("[]", "cannot be served: not the manifest of a bundle; restore it or train again"),
}
"""Name of a folder -> its manifest, and what the list says of it."""


def test_bundles_that_cannot_be_read_are_listed_with_what_is_wrong(tmp_path: Path) -> None:
    for day, (name, (text, _)) in enumerate(LISTED.items(), 1):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "manifest.json").write_text(text)
        for path in (tmp_path / name / "manifest.json", tmp_path / name):
            if path.exists():
                os.utime(path, (datetime(2024, 5, day, tzinfo=UTC).timestamp(),) * 2)
    (tmp_path / "no bundle").mkdir()
    (tmp_path / "9999999999999999").write_text("a file")
    (tmp_path / "0000000000000000").symlink_to("aaaaaaaaaaaaaaaa")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "manifest.json").symlink_to("manifest.json")
    os.utime(tmp_path / "loop", (datetime(2024, 5, 9, tzinfo=UTC).timestamp(),) * 2)
    loop = "cannot be served: cannot be read: Too many levels of symbolic links; links point at each other in a "
    assert printed("bundle", "list", "--bundles", str(tmp_path)).splitlines() == [
        *(f"{name}  2024-05-0{day} 00:00  {line}" for day, (name, (_, line)) in enumerate(LISTED.items(), 1)),
        f"loop  2024-05-09 00:00  {loop}circle: correct them",
    ]


def test_the_next_step_after_no_publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train._next_step(Path("bundles/abc")) == "next: recsys bundle publish abc (no bundle is current there yet)"
    (tmp_path / "my bundles" / "current").mkdir(parents=True)
    assert train._next_step(Path("my bundles/abc")) == (
        "next: recsys bundle compare current abc --bundles 'my bundles'"
    )


@pytest.mark.parametrize(
    ("arguments", "pairs"),
    [
        ([], {}),
        (["--data", "x"], {"data": "x"}),
        (["--data=x=y", "--my-key", "1"], {"data": "x=y", "my_key": "1"}),
    ],
)
def test_options_of_a_benchmark(arguments: list[str], pairs: dict[str, str]) -> None:
    assert bench._pairs(arguments) == pairs


@pytest.mark.parametrize("arguments", [["x"], ["--a"], ["--a", "1", "b", "2"], ["a", "--b"]])
def test_options_that_are_no_pairs(arguments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        bench._pairs(arguments)
    assert str(caught.value) == (
        f"options of a benchmark are pairs, --KEY VALUE; got: {' '.join(arguments)}; see recsys bench NAME --help"
    )


def test_folders_of_bundles(tmp_path: Path) -> None:
    assert options.bundles_folder(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").touch()
    for folder, reason in (
        ("none", ": no such folder of bundles; run `recsys train CONFIG`, or give --bundles FOLDER"),
        ("file", ": a file; --bundles takes the folder that `recsys train` wrote bundles to"),
        ("bundle", f" is a bundle; its parent holds the bundles: give --bundles {tmp_path}"),
    ):
        with pytest.raises(ConfigError) as caught:
            options.bundles_folder(tmp_path / folder)
        assert str(caught.value) == f"{tmp_path}/{folder}{reason}"


def test_tables_are_as_wide_as_their_figures_need(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    options.show(Table("x" * 92, "y"))
    assert "x" * 92 in capsys.readouterr().out
    options.show(Table("x" * 167, "y"), 175)
    assert "x" * 167 in capsys.readouterr().out


@pytest.mark.parametrize("share", ["1", "1/2/3", "a/2", "1/", "-1/2", "1.5/2"])
def test_a_share_of_the_slates_that_is_none(share: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main.app, ["slates", str(tmp_path / "out"), "--part", share])
    assert str(done.exception) == f"--part {share}: give I/N, e.g. 1/4 to 4/4"


def test_the_package_that_a_command_needs_is_named_with_its_extra() -> None:
    assert {
        **dict.fromkeys(("fastapi", "uvicorn", "pydantic_settings", "python_multipart"), "serve"),
        **dict.fromkeys(("redis", "prometheus_client"), "serve"),
        **dict.fromkeys(("implicit", "optuna"), "train"),
        **dict.fromkeys(("mlflow", "matplotlib"), "track"),
    } == main.EXTRAS
    main._print_version(False)


def test_every_character_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(main.sys, "stdout", streams[0])
    monkeypatch.setattr(main.sys, "stderr", streams[1])
    main._open_standard_streams()
    for stream in streams:
        print("é日", file=stream, flush=True)
        assert stream.buffer.getvalue() == b"\\xe9\\u65e5\n"


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as caught:
        main._fail("first [red]\n\n  second  " + "x" * 200)
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"error: first [red]; second  {'x' * 200}\n"
    with pytest.raises(SystemExit) as caught:
        main._fail("x", main.INTERRUPTED)
    assert caught.value.code == 130


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [
        ("OMP_NUM_THREADS", ["1", "007", "9999", "4,2", " 4 , 2 "], ["0", "10000", "x", "4,", "-1", "1.5"]),
        ("OMP_WAIT_POLICY", ["active", "PASSIVE", " Active "], ["x", "activ"]),
        ("POLARS_MAX_THREADS", ["1", "0012"], ["0", " 1", "1,2", "99999"]),
    ],
)
def test_variables_of_libraries(
    name: str, valid: list[str], invalid: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in valid:
        monkeypatch.setenv(name, value)
        main._check_environment()
    for value in invalid:
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=f"environment variable {name} = '{value}': must be .*, or unset"):
            main._check_environment()
