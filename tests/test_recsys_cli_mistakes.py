"""A user's mistakes at the command line: one line that names the place and what to do, and a status that is not 0."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_data import toy_config, write_tables

from recsys.cli.main import main

ITEMS = "item_id,title\ni0,A\ni1,B\n"
EVENTS = "user_id,item_id,event,timestamp\nu0,i0,take,2024-01-01T00:00:00Z\nu1,i1,take,2024-01-02T00:00:00Z\n"


class Tool:
    """Runs the command in this process, in a folder with a trained bundle and many faulty files."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.folder, self._capture, self._patch = folder, capture, patch

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """(status, standard output, standard error)."""
        self._patch.setattr(sys, "argv", ["recsys", *map(str, arguments)])
        self._capture.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        return status, *self._capture.readouterr()


def write_faulty_files(folder: Path) -> None:
    """Configurations and tables, each with one fault; its name says which."""
    config = (folder / "toy.yaml").read_text()
    texts = {
        "empty.yaml": "",
        "list.yaml": "- 1\n- 2\n",
        "nonyaml.yaml": "name: [x\ndata: }",
        "unknownkey.yaml": config + "tainring: {epochs: 3}\n",
        "nodata.yaml": "name: x\n",
        "wrongtype.yaml": config.replace("seed: 0", "") + "seed: many\n",
        "badbaseline.yaml": config.replace("item-knn:", "item-kmm:"),
        "unset.yaml": config.replace(f"path: {folder}/data", "path: $NO_SUCH_VARIABLE/data"),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01" * 50)
    tables = {
        "notables": {},
        "noevents": {"items.csv": ITEMS},
        "otherid": {"items.csv": ITEMS.replace("item_id", "id"), "events.csv": EVENTS},
        "othertime": {"items.csv": ITEMS, "events.csv": EVENTS.replace("timestamp", "ts")},
        "headeronly": {"items.csv": "item_id,title\n", "events.csv": EVENTS},
        "nocontent": {"items.csv": "", "events.csv": EVENTS},
        "twoformats": {"items.csv": ITEMS, "items.jsonl": '{"item_id": "i0"}\n', "events.csv": EVENTS},
    }
    for name, files in tables.items():
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(text)
        changed = config.replace(f"path: {folder}/data", f"path: {folder}/{name}")
        assert changed != config
        (folder / f"{name}.yaml").write_text(changed)
    (folder / "missing.yaml").write_text(config.replace(f"path: {folder}/data", f"path: {folder}/gone"))
    (folder / "filefolder.yaml").write_text(config.replace(f"path: {folder}/data", f"path: {folder}/toy.yaml"))
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("this is no picture")
    (folder / "nobundles").mkdir()
    broken = folder / "broken" / "0123456789abcdef"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    (folder / "dangling").mkdir()
    (folder / "dangling" / "current").symlink_to("fedcba9876543210")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    write_tables(folder / "data")
    config = toy_config(
        folder, training={"epochs": 1}, reranker=None, baselines={"popular": {}, "item-knn": {"k": 5}}
    )
    code = "from recsys.cli.main import main; main()"
    command = [sys.executable, "-c", code, "train", str(config), "--no-track"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    write_faulty_files(folder)
    return folder


@pytest.fixture
def tool(prepared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.chdir(prepared)
    for name in ("REDIS_URL", "MLFLOW_TRACKING_URI", "NO_SUCH_VARIABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:9/0")
    return Tool(prepared, capsys, monkeypatch)


def assert_told(done: tuple[int, str, str], *parts: str) -> None:
    """The run failed with one line that has all parts."""
    status, output, error = done
    assert status in (1, 2), (status, output, error)
    assert "Traceback" not in output + error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert error.splitlines()[-1] == lines[0], error
    assert 20 < len(lines[0]) < 1000
    for part in parts:
        assert part in lines[0], lines[0]


CONFIGURATIONS = {
    "gone.yaml": ("no configuration 'gone.yaml'", "shipped"),
    "movielense": ("no configuration 'movielense'", "did you mean movielens?"),
    "unknownkye.yaml": ("did you mean unknownkey.yaml?",),
    "nobundles": ("nobundles: a folder; give a file"),
    "": ("no configuration ''",),
    "empty.yaml": ("empty.yaml", "sections of named values are needed (got an empty file)"),
    "list.yaml": ("list.yaml", "sections of named values are needed (got a list)"),
    "nonyaml.yaml": ("nonyaml.yaml", "not YAML", "line 2"),
    "binary.yaml": ("binary.yaml: not ",),
    "unknownkey.yaml": ("unknownkey.yaml", "unknown key 'tainring'; did you mean 'training'?"),
    "nodata.yaml": ("nodata.yaml: data: missing; add it",),
    "wrongtype.yaml": ("wrongtype.yaml: seed:", "'many'"),
    "badbaseline.yaml": ("badbaseline.yaml: baselines", "item-kmm"),
    "unset.yaml": ("unset.yaml", "NO_SUCH_VARIABLE", "not set"),
}
"""Configuration -> parts of the error of every command that takes one."""

COMMANDS = (
    *(("train", "--no-track"), ("evaluate", "--no-track"), ("tune", "--no-track"), ("embed",)),
    *(("data", "check"), ("data", "get")),
)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_faulty_configuration_is_told_by_every_command(command: tuple[str, ...], name: str, tool: Tool) -> None:
    assert_told(tool(*command, name), *CONFIGURATIONS[name])


TABLES = {
    "missing.yaml": ("gone",),
    "filefolder.yaml": ("toy.yaml",),
    "notables.yaml": ("notables", "items"),
    "noevents.yaml": ("noevents", "events"),
    "otherid.yaml": ("items.csv: no column item_id", "is 'id' meant? Rename it to item_id"),
    "othertime.yaml": ("events.csv: no column timestamp", "is 'ts' meant? Rename it to timestamp"),
    "nocontent.yaml": ("items.csv",),
    "twoformats.yaml": ("items.csv", "items.jsonl"),
}
"""Configuration -> parts of the error of every command that reads its tables."""


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    "command", [("train", "--no-track"), ("evaluate", "--no-track"), ("data", "check")], ids=" ".join
)
def test_faulty_tables_are_told_by_every_command(command: tuple[str, ...], name: str, tool: Tool) -> None:
    assert_told(tool(*command, name), *TABLES[name])


MISTAKES: dict[str, tuple[str, ...]] = {
    # no such thing
    "trian toy.yaml": ("No such command 'trian'", "recsys --help"),
    "data chekc toy.yaml": ("chekc", "recsys data --help"),
    "bundle remove x": ("remove", "recsys bundle --help"),
    "experiment show": ("show", "recsys experiment --help"),
    "features fill toy.yaml": ("fill", "recsys features --help"),
    "train": ("Missing argument 'CONFIG'", "recsys train --help"),
    "data get": ("Missing argument", "recsys data get --help"),
    "slates": ("Missing argument", "recsys slates --help"),
    "bundle compare current": ("Missing argument", "recsys bundle compare --help"),
    "experiment compare a.parquet": ("Missing argument", "recsys experiment compare --help"),
    "train toy.yaml other.yaml --no-track": ("other.yaml", "recsys train --help"),
    "train toy.yaml --epochs 3": ("--epochs", "recsys train --help"),
    "train toy.yaml --no-trak": ("--no-trak", "--no-track"),
    "train toy.yaml --from": ("--from", "requires an argument"),
    "search --txt hello": ("--txt", "recsys search --help"),
    # values
    "search --text a --k abc": ("--k", "must be a whole number"),
    "search --text a --k 0": ("--k", "0"),
    "search --text a --k 1001": ("--k", "1001"),
    "search --text a --k 2.5": ("--k", "must be a whole number"),
    "slates out --k -3": ("--k", "-3"),
    "slates out --part 5/4": ("part 5/4", "1/"),
    "slates out --part 0/4": ("part 0/4",),
    "slates out --part 1": ("--part 1", "1/4"),
    "slates out --part a/b": ("--part a/b", "1/4"),
    "slates out --part 1/0": ("part 1/0",),
    "slates out --placement nowhere": ("nowhere", "home"),
    "slates toy.yaml/out": ("toy.yaml",),
    "tune toy.yaml --trials 0 --no-track": ("--trials", "0"),
    "tune toy.yaml --trials many --no-track": ("--trials", "must be a whole number"),
    "tune toy.yaml --minutes -1 --no-track": ("--minutes", "-1"),
    "tune toy.yaml --only nonsense --no-track": ("nonsense",),
    "tune toy.yaml --only towers.nonsense --no-track": ("towers.nonsense",),
    "experiment ui --port 0": ("--port", "0"),
    "experiment ui --port 65536": ("--port", "65536"),
    "experiment ui --port x": ("--port", "must be a whole number"),
    "serve --port 65536": ("port", "65536"),
    "serve --port -1": ("port", "-1"),
    "serve --workers 0": ("--workers", "0"),
    "serve --port http": ("--port", "must be a whole number"),
    "serve --host nosuchhost.invalid": ("nosuchhost.invalid", "--host"),
    "serve --host 203.0.113.7": ("203.0.113.7 is not an address of this machine", "--host"),
    "serve --bundles toy.yaml": ("toy.yaml: a file; --bundles takes a folder",),
    "serve --log toy.yaml": ("toy.yaml", "a file stands where a folder is needed"),
    # files
    "search": ("the query is empty", "--text"),
    "search --image nope.jpg": ("--image nope.jpg: no such file",),
    "search --text a --image nope.jpg": ("--image nope.jpg: no such file",),
    "search --audio nope.wav": ("--audio nope.wav: no such file",),
    "search --video nope.mp4": ("--video nope.mp4: no such file",),
    "search --image data": ("--image data: a folder; give a file",),
    "search --image empty.png": ("--image empty.png: the file is empty",),
    "search --image text.png": ("the bundle has no contents",),
    "search --text a": ("the bundle has no contents", "train with an encoder"),
    "experiment compare a.parquet b.parquet": ("a.parquet",),
    "experiment compare toy.yaml toy.yaml": ("toy.yaml",),
    "experiment compare data data": ("data",),
    "evaluate toy.yaml --outcomes toy.yaml/a.parquet": (
        "the folder of the outcomes cannot be written: toy.yaml",
        "a file stands where a folder is needed",
    ),
    "evaluate toy.yaml --outcomes data": ("data is a folder", "add a file name"),
    "embed toy.yaml": ("encoder is null", "builtin"),
    "features refresh toy.yaml": ("127.0.0.1:9",),
    # bundles
    "search --text a --bundles gone": ("gone: no such folder of bundles", "recsys train"),
    "search --text a --bundles toy.yaml": ("toy.yaml: a file; --bundles takes the folder",),
    "search --text a --bundles nobundles": ("nobundles", "recsys train"),
    "search --text a --bundles dangling": ("fedcba9876543210",),
    "bundle list --bundles gone": ("gone: no such folder of bundles", "recsys train"),
    "bundle list --bundles toy.yaml": ("toy.yaml: a file",),
    "bundle publish zzz": ("0 bundles begin with 'zzz'", "there are: "),
    "bundle publish current --bundles nobundles": ("nobundles", "recsys train"),
    "bundle publish 0123 --bundles broken": ("manifest.json",),
    "bundle publish x --bundles toy.yaml": ("toy.yaml: a file",),
    "bundle compare current zzz": ("0 bundles begin with 'zzz'",),
    "bundle compare current zzz --bundles gone": ("gone: no such folder of bundles",),
    "slates out --bundle zzz": ("0 bundles begin with 'zzz'",),
    "slates out --bundles gone": ("gone: no such folder of bundles",),
    "slates out --bundles toy.yaml": ("toy.yaml: a file",),
    "train toy.yaml --no-track --from zzz": ("zzz",),
    "train toy.yaml --no-track --from nobundles": ("nobundles",),
    # benchmarks
    "bench": ("no benchmark is named", "check"),
    "bench chekc": ("no benchmark 'chekc'", "did you mean check?"),
    "bench check rows 5": ("pairs, --KEY VALUE", "recsys bench NAME --help"),
    "bench check --rows": ("pairs, --KEY VALUE",),
    "bench check --rows many": ("--rows many", "recsys bench check --help"),
    "bench check --rows 0": ("bench check --rows 0", "from 1 on"),
    "bench check --rows -5": ("bench check --rows -5", "negative"),
    "bench metrics --seed -1": ("bench metrics --seed -1", "non-negative"),
    "bench check --raws 5": ("no option 'raws'", "rows"),
    "bench all --rows 5": ("bench all takes no options",),
    "bench alignment": ("--data",),
    "bench alignment --data gone": ("gone",),
    "bench encode": ("--data DIR",),
    "bench baselines --data gone": ("gone",),
    "bench train --config gone.yaml": ("gone.yaml",),
    "bench train --config toy.yaml": ("toy.yaml", "leave-last-out"),
    "bench ablation --config toy.yaml --only nonsense": ("nonsense",),
}
"""Command line -> parts of the error."""


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_told_in_one_line(line: str, tool: Tool) -> None:
    assert_told(tool(*line.split()), *MISTAKES[line])


def test_an_empty_name_of_a_bundle_is_told(tool: Tool) -> None:
    assert_told(tool("bundle", "publish", ""), "the name of a bundle is empty", "recsys bundle list")


@pytest.mark.parametrize(
    "environment", [{"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "x"}, {"WORLD_SIZE": "0"}]
)
def test_variables_of_torchrun_that_are_not_whole_are_told(
    environment: dict[str, str], tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", **environment}.items():
        monkeypatch.setenv(name, value)
    assert_told(tool("--version"), "TORCHELASTIC_RUN_ID is set", "start the command with torchrun")


def test_a_store_that_is_not_named_is_told(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL")
    assert_told(tool("features", "refresh", "toy.yaml"), "REDIS_URL is not set", "redis://")


@pytest.mark.parametrize(
    ("variable", "value", "parts"),
    [
        ("RECSYS__TRAINING__EPOCHS", "many", ("training.epochs", "'many'")),
        ("RECSYS__TRAINING__EPOCH", "3", ("training.epoch", "did you mean 'epochs'?")),
        ("RECSYS__SEED__X", "3", ("RECSYS__SEED__X", "not a section")),
        ("RECSYS__SEED", "[", ("RECSYS__SEED", "not YAML")),
        ("RECSYS__SEED", "-1", ("seed", "must be 0 or more")),
        ("RECSYS__BUNDLES", '"a\\0b"', ("null character", "remove it")),
        ("RECSYS__TRAINING__LEARNING_RATE", "1e30", ("training.learning_rate: must be 100 or less",)),
        ("RECSYS__TOWERS__HISTORY", "257", ("towers.history is 257", "set data.events.history to 514")),
        ("RECSYS__TOWERS__DIMENSION", "1000000000000", ("must be 16,384 or less", "1000000000000")),
        ("RECSYS__BASELINES", "{popular: {days: 1e300}}", ("baselines.popular", "1e+300")),
    ],
)
def test_a_faulty_override_is_told(
    variable: str, value: str, parts: tuple[str, ...], tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tool.folder / "seeded.yaml").write_text((tool.folder / "toy.yaml").read_text() + "seed: 1\n")
    monkeypatch.setenv(variable, value)
    assert_told(tool("train", "seeded.yaml", "--no-track"), *parts)


@pytest.mark.parametrize(
    ("variable", "value"), [("PORT", "x"), ("THREADS", "0"), ("STORE_TIMEOUT", "nan"), ("PRELOAD", "perhaps")]
)
def test_a_faulty_setting_of_the_service_is_told(
    variable: str, value: str, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"RECSYS_SERVE__{variable}", value)
    assert_told(tool("serve"), f"environment variable RECSYS_SERVE__{variable} = '{value}': must be ")


def test_a_misspelt_setting_of_the_service_is_told(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_SERVE__TRHEADS", "2")
    assert_told(tool("serve"), "RECSYS_SERVE__TRHEADS names no setting", "did you mean RECSYS_SERVE__THREADS?")


def test_a_log_that_cannot_be_opened_is_told_before_the_server_starts(tool: Tool) -> None:
    (tool.folder / "odd" / "99999999999999999999-1.log").mkdir(parents=True)
    assert_told(tool("serve", "--log", "odd", "--port", "0"), "the event log in odd cannot be", "not a regular file")


def test_the_error_of_a_setting_shows_no_password(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_SERVE__PORT", "redis://u:s3cret@store/0")
    told = tool("serve")
    assert_told(told, "environment variable RECSYS_SERVE__PORT = 'redis://store/0'")
    assert "s3cret" not in told[2]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.mark.parametrize("command", [("serve",), ("experiment", "ui")], ids=" ".join)
def test_a_taken_port_is_told_before_anything_starts(command: tuple[str, ...], taken: int, tool: Tool) -> None:
    status, output, error = tool(*command, "--port", taken)
    assert_told((status, output, error), f"port {taken} is taken", "--port")
    assert len(error.splitlines()) == 1
    assert not (tool.folder / "state").exists()


def test_after_no_publish_the_next_command_works(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    for bundles in ("fresh", "fresh"):
        monkeypatch.setenv("RECSYS__BUNDLES", bundles)
        status, output, error = tool("train", "toy.yaml", "--no-track", "--no-publish")
        assert status == 0, error
        (line,) = [line for line in output.splitlines() if line.startswith("next: recsys ")]
        command = line.removeprefix("next: recsys ").partition(" (")[0].split()
        assert tool(*command)[0] == 0
        monkeypatch.setenv("RECSYS__SEED", "5")
    assert command[:3] == ["bundle", "compare", "current"]


def test_the_list_of_bundles_has_dates_and_figures(tool: Tool) -> None:
    status, output, error = tool("bundle", "list")
    assert status == 0, error
    (line,) = output.splitlines()
    assert line.endswith("<- current")
    manifest = json.loads((tool.folder / "bundles" / "current" / "manifest.json").read_text())
    row = manifest["metrics"][0]["rows"][-1]
    assert f"NDCG@10 home {row['ndcg_at_10']['mean']:.4f}, again 0." in line
    assert line.split()[1].startswith("20")
    status, output, error = tool("bundle", "list", "--bundles", "broken")
    assert status == 0
    assert "cannot be served: cannot be read: " in output
    assert "no bundle in nobundles" in tool("bundle", "list", "--bundles", "nobundles")[2]


def test_the_version_is_that_of_the_package(tool: Tool) -> None:
    from importlib import metadata

    assert tool("--version") == (0, f"recsys {metadata.version('onespace-recsys')}\n", "")


def test_ctrl_c_is_one_line_and_status_130(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.dataset.load_dataset", interrupted)
    assert tool("data", "check", "toy.yaml") == (130, "", "error: interrupted\n")


CODE = "from recsys.cli.main import main; main()"


def start(folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LANG": "C", "LC_ALL": "C"},
        {"COLUMNS": "20"},
        {"NO_COLOR": "1", "TERM": "dumb"},
    ],
    ids=str,
)
def test_every_terminal_shows_a_report(environment: dict[str, str], prepared: Path) -> None:
    for name in ("café", "otherid"):
        (prepared / f"{name}.yaml").write_text((prepared / "toy.yaml").read_text().replace("name: toy", "name: Café"))
    process = start(prepared, "data", "check", "café.yaml", **environment)
    output, error = process.communicate()
    assert process.returncode == 0, error
    assert b"520" in output
    process = start(prepared, "data", "check", "caf\N{LATIN SMALL LETTER E WITH ACUTE}-gone", **environment)
    output, error = process.communicate()
    assert process.returncode == 1
    assert error.startswith(b"error: no configuration 'caf")
    assert error.count(b"\n") == 1


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">/dev/full", "| head -n 1", "<&- >&- 2>&-"])
def test_output_that_nobody_reads_is_no_traceback(redirection: str, prepared: Path) -> None:
    line = f'"{sys.executable}" -c "{CODE}" data check toy.yaml {redirection}'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=prepared, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if redirection == ">/dev/full":
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("error: standard output, or a file: No space left on device;")
