"""What a run of the embedding job reports, and how the items' columns become contents."""

import hashlib
from pathlib import Path

import polars as pl
import pytest
from test_features_embed import Toy, always, cached, run

from features.content.embed import EncoderReport, item_contents, item_titles
from features.content.parts import Content, Image, Text
from features.content.spaces import Failure, SpaceKey
from features.content.vector_cache import FORMAT, MAX_TRIES, MIN_MERGED, SHARD_BYTES, VectorCache, cache_folder


def test_a_report_shows_five_failures_and_the_table_has_all(tmp_path):
    pictures = Toy("image", name="pictures")
    contents = [Content.of(Text("x"), Image(f"bad {number}".encode())) for number in range(7)]
    found = run(contents, tmp_path / "cache", pictures)
    (report,) = found.encoders
    assert report.first == tuple(Failure(row, 1, f"bad {row}") for row in range(5))
    assert (report.failed, report.readable, report.computed, report.changed, report.cached) == (7, 7, 7, 0, 0)
    assert (report.encoder, report.space, report.contents, report.damaged) == ("pictures", pictures.key, 7, ())
    assert found.failures == tmp_path / "cache" / "failed.parquet"
    table = pl.read_parquet(found.failures)
    assert table.schema == {"encoder": pl.String, "row": pl.Int64, "part": pl.Int32, "reason": pl.String}
    assert table.rows() == [("pictures", row, 1, f"bad {row}") for row in range(7)]
    assert found.seconds > 0
    assert report.seconds > 0
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(
        ["failed.parquet", "files.sqlite", cache_folder(tmp_path, pictures.key).name]
    )


def test_contents_that_were_not_stored_count_in_the_rate():
    report = EncoderReport("e", SpaceKey("m", "1", 2), 9, 9, 0, 6, 2, 0, (), (), 4.0)
    assert report.per_second == 2
    assert EncoderReport("e", SpaceKey("m", "1", 2), 0, 0, 0, 0, 0, 0, (), (), 0.0).per_second == 0


def test_a_batch_has_512_contents(tmp_path):
    words = Toy("text", name="words")
    words.vector = always(1, 0, 0, 0)
    sizes = []
    words.before = lambda contents: sizes.append(len(contents))
    contents = [Content.of(Text(str(number))) for number in range(1_026)]
    run(contents, tmp_path, words)
    assert sizes == [512, 512, 2]
    assert cached(contents, words, tmp_path).present.all()


def test_progress_has_the_name_of_the_encoder_and_its_number_of_contents(tmp_path):
    started = []

    def progress(description, total):
        started.append((description, total))
        return lambda steps: None

    contents = [Content.of(Text("a")), Content.of(Text("a")), Content(), Content.of(Text("b"))]
    words = Toy("text", name="words")
    run(contents, tmp_path, words, progress=progress)
    assert started == [("files and texts", 4), ("embed words", 2)]
    started.clear()
    run(contents, tmp_path, words, progress=progress)
    assert started == [("files and texts", 4)]


@pytest.mark.parametrize(
    ("text", "is_url"),
    [
        *((f"{scheme}://a/x.jpg", True) for scheme in ("http", "https", "s3", "gs", "a+b", "A.b")),
        *((text, False) for text in ("x.jpg", "a/x.jpg", "/x.jpg", "c:/x.jpg", "c://x.jpg", "3s://x", "http:/x")),
    ],
)
def test_what_is_a_url_and_what_a_path(text, is_url):
    items = pl.DataFrame({"item_id": ["a"], "title": ["t"], "description": [None], "categories": [None]})
    items = items.with_columns(pl.lit(text).alias("image"))
    items = items.cast({"description": pl.String, "categories": pl.List(pl.String)})
    (content,) = item_contents(items, Path("/data"))
    assert content.parts[1] == Image(text if is_url else Path("/data") / text)


def test_a_title_that_is_the_whole_text_is_no_content_of_its_own():
    items = pl.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "title": ["Only a title", "A title", None],
            "description": [None, "with more", "more"],
            "categories": [None, None, None],
        }
    ).cast({"categories": pl.List(pl.String)})
    assert item_titles(items) == [Content(), Content((Text("A title"),)), Content()]


def test_the_figures_of_caches_on_disk(tmp_path):
    key = SpaceKey("m", "1", 2)
    with VectorCache(tmp_path, key).writing():
        assert (tmp_path / "space.json").read_text().startswith('{\n  "format": 1,\n  "model": "m",')
    assert (FORMAT, SHARD_BYTES, MIN_MERGED, MAX_TRIES) == (1, 33_554_432, 16, 20)
    text = '{"model": "m", "revision": "1", "dimension": 2, "prompt": "", "preprocessing": "", "normalisation": "l2"}'
    assert cache_folder(Path("c"), key) == Path("c") / hashlib.sha256(text.encode()).hexdigest()[:16]
