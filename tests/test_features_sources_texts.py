"""Texts of products and films, as their sources make them from abbreviations, sizes and genres."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from features.errors import SourceError
from features.schema import DataConfig, EventRules
from features.tables.sources import SOURCES, folder, movielens
from features.tables.sources.complete_journey import _readable, _texts
from features.tables.sources.extract import write

RATINGS = EventRules(positive={"rating": 3.5})


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        ("FRZN FRUIT - BAGGED", "Frozen fruit, bagged"),
        ("REFRGRATD  DRNK", "Refrigerated drink"),
        ("PCKGD PKGD PKG MEAT", "Packaged packaged packaged meat"),
        ("FD:DOG FD", "Food: dog food"),
        ("DRNKING BKD", "Drinking baked"),
        ("SPLYS SPLY SUPPPPLIES SUPPPLIES", "Supplies supplies supplies supplies"),
        ("CLEANG VEG BG SW", "Cleaning vegetable bag sweet"),
        ("GDS GDS:X", "Goods goods: x"),
        ("MISC MISC. TRANS", "Miscellaneous miscellaneous transport"),
        ("HYGN&FEM.", "Hygiene & feminine"),
        ("CATFD DOGFD", "Cat food dog food"),
        ("CRBNTD NON-CRBNTD PROD", "Carbonated non-carbonated products"),
        ("ACCESS. GM", "Accessories general merchandise"),
        ("MEAT-PCKGD SEAFOOD-PCKGD", "Packaged meat packaged seafood"),
        ("  ICE ", "Ice"),
        (None, None),
    ],
)
def test_abbreviations_become_words(text: str | None, readable: str | None) -> None:
    frame = pl.DataFrame({"x": [text]}, schema={"x": pl.String})
    assert frame.select(_readable("x").alias("x")).item() == readable


def test_texts_of_a_product() -> None:
    products = pl.DataFrame(
        {
            "product_type": ["FRZN PEAS", None, None],
            "product_category": ["VEG", "VEG", None],
            "department": ["GROCERY", "GROCERY", "GROCERY"],
            "brand": ["Private", "National", None],
            "package_size": ["22 LB", None, None],
        }
    )
    rows = products.select(_texts()).rows()
    assert rows == [
        ("Frozen peas, 22 lb, store brand", "Vegetable. Grocery department. Private brand", ["Grocery", "Vegetable"]),
        ("Vegetable", "Vegetable. Grocery department. National brand", ["Grocery", "Vegetable"]),
        ("Grocery", "Grocery department", ["Grocery"]),
    ]


def grouplens(tmp_path: Path, films: str, name: str = "movies.csv") -> movielens.Extract:
    source = tmp_path / "ml"
    source.mkdir()
    (source / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.5,964982703\n")
    (source / name).write_text(films)
    config = DataConfig(source="movielens", path=str(tmp_path / "out"), origin=str(source), events=RATINGS)
    return movielens.extract(config)


def test_films_of_a_folder(tmp_path: Path) -> None:
    films = "movieId,title,genres\n10,A (1995),Drama|War\n11,B (1995) more,(no genres listed)\n12,C (19) (2001) ,X\n"
    found = grouplens(tmp_path, films)
    assert found.items.select("item_id", "title", "categories").collect().rows() == [
        ("10", "A (1995)", ["Drama", "War"]),
        ("11", "B (1995) more", []),
        ("12", "C (19) (2001) ", ["X"]),
    ]
    years = found.items.select(pl.col("published_at").dt.year()).collect().to_series().to_list()
    assert years == [1995, None, 2001]
    assert found.notes == ()
    assert found.terms == (
        "GroupLens: research use, not commercial, no redistribution without permission; cite Harper and Konstan 2015"
    )
    assert found.origin == str(tmp_path / "ml")


def test_posters_and_tags_are_told(tmp_path: Path) -> None:
    films = "movieId,title,genres,text,poster,tags\n10,A (1995),Drama,Plot,p/10.jpg,x\n"
    found = grouplens(tmp_path, films, "items.csv")
    row = found.items.collect().row(0, named=True)
    assert (row["description"], row["image"]) == ("Plot", f"{tmp_path}/ml/p/10.jpg")
    assert found.terms.endswith("; posters belong to their studios")
    assert found.notes == ("tags are not read: they were assigned later than many ratings",)


def test_names_of_sources_and_downloads(tmp_path: Path) -> None:
    assert list(SOURCES) == [
        "movielens",
        "complete-journey",
        "sequences",
        "amazon-2023",
        "microlens",
        "stamps",
        "folder",
    ]
    assert movielens.DOWNLOADS == ("ml-1m", "ml-20m", "ml-32m")
    assert movielens.GROUPLENS == "https://files.grouplens.org/datasets/movielens"
    (tmp_path / "x.txt").touch()
    (tmp_path / "ratings.csv").touch()
    with pytest.raises(SourceError) as caught:
        movielens._folder(tmp_path, "o")
    assert str(caught.value) == (
        f"{tmp_path} is not in GroupLens format: it needs ratings.csv with movies.csv or items.csv, or ratings.dat "
        "with movies.dat; the folder has: ratings.csv, x.txt"
    )
    config = DataConfig(source="folder", path=str(tmp_path), events=RATINGS)
    (tmp_path / "items.csv").touch()
    with pytest.raises(SourceError) as caught:
        folder.verify(config)
    assert str(caught.value) == (
        f"{tmp_path} has no events (.parquet or .csv or .jsonl or .ndjson); put your tables there"
    )


def test_a_download_is_asked_for_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, into: Path) -> Path:
        asked.append((name, into))
        return tmp_path / "ml"

    monkeypatch.setattr(movielens, "fetch", fetch)
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "ratings.dat").write_text("1::10::5::978300760\n")
    (tmp_path / "ml" / "movies.dat").write_text("10::A (1995)::Drama\n")
    config = DataConfig(source="movielens", path=str(tmp_path / "out"), origin="ml-20m", events=RATINGS)
    found = movielens.extract(config)
    assert asked == [("ml-20m", tmp_path / "out" / "download")]
    assert found.origin == "https://files.grouplens.org/datasets/movielens/ml-20m.zip"
    assert found.events is not None
    user, item, event, time, value = found.events.collect().row(0)
    assert (user, item, event, value) == ("1", "10", "rating", 5.0)
    assert str(time) == "2000-12-31 22:12:40+00:00"


def test_source_json_is_read_by_people(tmp_path: Path) -> None:
    found = grouplens(tmp_path, "movieId,title,genres\n10,Ä (1995),Drama\n")
    config = DataConfig(source="movielens", path=str(tmp_path / "out"), origin="here", events=RATINGS)
    write(replace(found, terms="© 2015"), config)
    text = (tmp_path / "out" / "source.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "name": "movielens",\n  "configured_origin": "here",\n')
    assert '  "terms": "© 2015",\n  "notes": [],\n  "simulated": false,\n  "files": {\n' in text
    assert '    "items.parquet": {\n      "rows": 1,' in text
    assert text.endswith("}\n")
