"""Sources `amazon-2023` and `microlens` on small files of their form, from folders and from a server."""

import gzip
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from features.errors import ConfigError, DataError, SourceError
from features.schema import DataConfig, EventRules
from features.tables.read import read_tables
from features.tables.sources import amazon_2023, get, microlens
from features.tables.sources.download import download
from recsys.cli.main import app

BOX = "https://m.media-amazon.com/images/I/"
PRODUCTS: list[dict[str, Any]] = [
    {
        "main_category": "All Beauty",
        "title": "Soap",
        "average_rating": 4.8,
        "rating_number": 10,
        "features": ["Mild", "Round"],
        "description": ["A soap."],
        "price": 3.5,
        "images": [
            {"thumb": f"{BOX}s1t.jpg", "large": f"{BOX}s1.jpg", "variant": "PT01", "hi_res": None},
            {"thumb": f"{BOX}s2t.jpg", "large": f"{BOX}s2.jpg", "variant": "MAIN", "hi_res": f"{BOX}s2h.jpg"},
        ],
        "videos": [],
        "store": "Mills",
        "categories": [],
        "details": {"Brand": "Mills"},
        "parent_asin": "B01",
        "bought_together": None,
    },
    {
        "main_category": None,
        "title": "Comb",
        "features": [],
        "description": [],
        "price": "from 4.99",
        "images": [{"thumb": f"{BOX}ct.jpg", "large": f"{BOX}c.jpg", "variant": "PT02", "hi_res": None}],
        "categories": ["Beauty", "Hair"],
        "details": {},
        "parent_asin": "B02",
    },
    {"title": "Soap, again", "parent_asin": "B01", "images": [], "features": [], "description": [], "price": None},
    {"title": "Bare", "parent_asin": "B03", "images": [], "features": [], "description": [], "price": None},
]


def review(user: str, item: str, stars: float, time: int) -> dict[str, Any]:
    return {
        "rating": stars,
        "title": "Fine",
        "text": "It is fine.",
        "images": [],
        "asin": f"{item}-red",
        "parent_asin": item,
        "user_id": user,
        "timestamp": time,
        "helpful_vote": 0,
        "verified_purchase": True,
    }


REVIEWS = [review("AE1", "B01", 5.0, 1588687728923), review("AE2", "B09", 2.0, 1588687728924)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def config(source: str, path: Path, origin: object = None) -> DataConfig:
    rules = EventRules(positive={"rating": 4, "comment": None})
    return DataConfig(source=source, path=str(path), origin=None if origin is None else str(origin), events=rules)


def check_amazon(out: DataConfig) -> None:
    tables = read_tables(out)
    assert tables.report.problems == ()
    assert tables.items.select("item_id", "title", "description", "categories", "price", "image").rows() == [
        ("B01", "Soap", "A soap. Mild Round", ["All Beauty"], 3.5, f"{BOX}s2h.jpg"),
        ("B02", "Comb", None, ["Beauty", "Hair"], None, f"{BOX}c.jpg"),
        ("B03", "Bare", None, [], None, None),
        ("B09", None, None, None, None, None),
    ]
    time = datetime(2020, 5, 5, 14, 8, 48, 923_000, tzinfo=UTC)
    assert tables.events.select("user_id", "item_id", "event", "timestamp", "value").row(0) == (
        *("AE1", "B01", "rating", time),
        5.0,
    )
    assert len(tables.events) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_reviews_and_products_of_a_folder(tmp_path: Path, packed: bool) -> None:
    for name, rows in (("All_Beauty", REVIEWS), ("meta_All_Beauty", PRODUCTS)):
        data = gzip.compress(lines(rows)) if packed else lines(rows)
        (tmp_path / f"{name}.jsonl{'.gz' if packed else ''}").write_bytes(data)
    request = config("amazon-2023", tmp_path / "out", tmp_path / "All_Beauty")
    get(request)
    check_amazon(request)


def test_a_category_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"Toys.jsonl: no such file, nor with .gz; data.origin must be a category"):
        get(config("amazon-2023", tmp_path / "out", tmp_path / "Toys"))
    with pytest.raises(SourceError, match=r"source amazon-2023 needs data.origin: a category, e.g. All_Beauty"):
        get(config("amazon-2023", tmp_path / "out"))
    for name in ("Toys", "meta_Toys"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"Toys.jsonl.gz .* cannot be read"):
        get(config("amazon-2023", tmp_path / "out", tmp_path / "Toys"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Address and folder of a server, and the paths that it was asked for; it refuses the agent of urllib."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.headers["User-Agent"].startswith("Python-urllib"):
                self.send_error(403)
            else:
                super().do_GET()

        def log_message(self, *args: Any) -> None:
            pass

    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", folder, asked
        server.shutdown()
        thread.join()


def test_a_category_is_downloaded(
    tmp_path: Path, site: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder, asked = site
    for name, rows in (("review_categories/Toys", REVIEWS), ("meta_categories/meta_Toys", PRODUCTS)):
        (folder / name).parent.mkdir()
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines(rows)))
    monkeypatch.setattr(amazon_2023, "fetch", partial(amazon_2023.fetch, base=base))
    request = config("amazon-2023", tmp_path / "out", "Toys")
    get(request)
    check_amazon(request)
    get(request, force=True)
    assert asked == ["/review_categories/Toys.jsonl.gz", "/meta_categories/meta_Toys.jsonl.gz"]  # each once
    with pytest.raises(SourceError, match="the server answers 404"):
        get(config("amazon-2023", tmp_path / "out", "Books"))


def test_the_category_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = config("amazon-2023", tmp_path, "/data/All_Beauty")
    assert amazon_2023.of_category(folder, "Toys").origin == "/data/Toys"
    assert amazon_2023.of_category(config("amazon-2023", tmp_path, "All_Beauty"), "Toys").origin == "Toys"
    assert amazon_2023.of_category(config("amazon-2023", tmp_path), "Toys").origin == "Toys"
    with pytest.raises(ConfigError, match="--category is for source amazon-2023; movielens has no categories"):
        amazon_2023.of_category(config("movielens", tmp_path), "Toys")
    (tmp_path / "Toys.jsonl").write_bytes(lines(REVIEWS))
    (tmp_path / "meta_Toys.jsonl").write_bytes(lines(PRODUCTS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECSYS__DATA__ORIGIN", str(tmp_path / "All_Beauty"))
    done = CliRunner().invoke(app, ["data", "get", "amazon-2023", "--category", "Toys"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "  events.parquet: 2 rows" in done.output
    assert "terms of use: Amazon Reviews 2023" in done.output


PAIRS = "user,item,timestamp\n7,1,1588687728923\n8,2,1588687728924\n"


def covers() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("MicroLens-50k_covers/", b"")
        packed.writestr("MicroLens-50k_covers/1.jpg", b"one")
        packed.writestr("../2.jpg", b"two")
    return out.getvalue()


def test_videos_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "MicroLens-100k-Dataset"
    files = {
        "MicroLens-100k_pairs.csv": PAIRS,
        "MicroLens-100k_title_en.csv": '1,"A cat, asleep"\n2,A dog\n3,Rain\n',  # without a header
        "tags_to_summary.csv": "1,Pets\n2,Pets\n",
        "MicroLens-100k_covers/1.jpg": "c",
        "MicroLens-100k_audios/2.wav": "s",
        "MicroLens-100k_videos/2.mp4": "v",
        "MicroLens-100k_videos/3.mp4": "v",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    request = config("microlens", tmp_path / "out", folder)
    get(request)
    tables = read_tables(request)
    assert tables.report.problems == ()
    place = f"{folder}/MicroLens-100k"
    assert tables.items.select("item_id", "title", "categories", "image", "audio", "video").rows() == [
        ("1", "A cat, asleep", ["Pets"], f"{place}_covers/1.jpg", None, None),
        ("2", "A dog", ["Pets"], None, f"{place}_audios/2.wav", f"{place}_videos/2.mp4"),
        ("3", "Rain", None, None, None, f"{place}_videos/3.mp4"),
    ]
    time = datetime(2020, 5, 5, 14, 8, 48, 923_000, tzinfo=UTC)
    assert tables.events.select("user_id", "item_id", "event", "timestamp").row(0) == ("7", "1", "comment", time)
    manifest = json.loads((tmp_path / "out" / "source.json").read_text())
    assert manifest["notes"][0] == "files: 1 covers, 1 audio, 2 videos"
    assert "may not be offered for download" in manifest["terms"]
    assert manifest["simulated"] is False


def test_a_subset_is_downloaded(
    tmp_path: Path, site: tuple[str, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder, asked = site
    place = folder / "MicroLens-50k-Dataset"
    place.mkdir()
    (place / "MicroLens-50k_pairs.csv").write_text(PAIRS)
    (place / "MicroLens-50k_titles.csv").write_text("item,title\n1,A cat\n2,A dog\n")
    (place / "MicroLens-50k_covers.zip").write_bytes(covers())
    monkeypatch.setattr(microlens, "fetch", partial(microlens.fetch, base=base))
    request = config("microlens", tmp_path / "out", "MicroLens-50k")
    get(request)
    items = read_tables(request).items.select("item_id", "title", "image").rows()
    down = tmp_path / "out" / "download" / "MicroLens-50k" / "MicroLens-50k_covers"
    assert items == [("1", "A cat", str(down / "1.jpg")), ("2", "A dog", str(down / "2.jpg"))]
    get(request, force=True)
    assert len(asked) == 3
    (down.parent / "MicroLens-50k_covers.zip").write_bytes(b"no zip")
    with pytest.raises(SourceError, match=r"covers.zip is not a zip file; delete it and run again"):
        get(request, force=True)


def test_a_folder_that_is_not_microlens(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(SourceError, match=r"in must hold one file \*_pairs.csv and has none; data.origin is one of"):
        get(config("microlens", tmp_path / "out", tmp_path / "in"))
    with pytest.raises(SourceError, match=r"'microlens' needs data.origin: one of MicroLens-50k, MicroLens-100k"):
        get(config("microlens", tmp_path / "out"))


def test_without_a_published_checksum_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    assert download("http://127.0.0.1:9/a.csv", tmp_path / "a.csv", md5=None).read_text() == "x"
    assert pl.read_csv(tmp_path / "a.csv").columns == ["x"]
