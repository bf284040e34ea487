"""The benchmark of cold items on a catalogue of themes: a user's items share one theme, which their texts name."""

import shutil

import numpy as np
import polars as pl
import pytest
import yaml
from toy_data import toy_log

from experiments.bench.quality import cold
from features.errors import ConfigError, DataError
from features.interactions import Ragged
from recsys.baselines.content import fit_bridge, fit_tfidf
from recsys.dense_recommender import DenseRecommender

THEMES = 4
REFERENCES = ("TF-IDF profile", "content bridge", "bridge + TF-IDF", "EASE^R bridge")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("themes")
    rng = np.random.default_rng(0)
    items = np.arange(200)
    pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in items],
            "title": [f"theme{item % THEMES} thing" for item in items],
            "categories": [f'["theme{item % THEMES}", "third{item % 3}"]' for item in items],
        }
    ).write_csv(folder / "items.csv")
    rows = [
        (f"u{user}", f"i{user % THEMES + THEMES * item}", "view", f"2024-01-{1 + day:02d}T00:00:00Z")
        for user in range(60)
        for day, item in enumerate(rng.permutation(50)[:20])
    ]
    pl.DataFrame(rows, schema=["user_id", "item_id", "event", "timestamp"], orient="row").write_csv(
        folder / "events.csv"
    )
    path = folder / "themes.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "themes",
                "data": {"source": "folder", "path": str(folder), "events": {"positive": {"view": None}}},
                "encoder": None,
                "towers": {"dimension": 8, "layers": 1, "history": 20, "dropout": 0.1, "id_dropout": 0.5},
                "training": {"epochs": 30, "batch_events": 200, "learning_rate": 0.01},
                "reranker": None,
            }
        )
    )
    return path


def test_models_of_content_find_cold_items(config):
    result = cold.run(config=str(config))
    figures = result.figures
    assert (figures["items"], figures["items_cold"]) == (200, 20)
    for name in ("TF-IDF profile", "content bridge", "two towers"):  # a theme has fewer than ten cold items
        assert figures[f"{name}, among cold: hr_at_10"] > 0.95
    assert figures["TF-IDF profile, among all: hr_at_10"] < 0.5  # and fifty items in all
    assert [bar.name for bar in result.bars] == [
        "among cold, over the best reference",
        "among all, over the TF-IDF profile",
    ]
    assert result.bars[0].value == pytest.approx(
        figures["two towers, among cold: hr_at_10"]
        / max(figures[f"{name}, among cold: hr_at_10"] for name in REFERENCES)
    )


def test_with_a_cut_items_that_occur_later_are_cold_and_later_events_are_not_fitted_on(config, monkeypatch):
    """With a reranker, the bars are of the served order."""
    served = yaml.safe_load(config.read_text()) | {"reranker": {"candidates": 50, "trees": 10}}
    path = config.with_name("served.yaml")
    path.write_text(yaml.safe_dump(served))
    latest = []  # time of the last event that each call fits on

    def spy(name, events_of):
        real = getattr(cold, name)

        def spied(*args, **options):
            latest.append(events_of(args).latest)
            return real(*args, **options)

        monkeypatch.setattr(cold, name, spied)

    spy("fit_tfidf", lambda args: args[0])
    spy("select_model", lambda args: args[1].events)
    spy("fit_selected", lambda args: args[2])
    result = cold.run(short=True, config=str(path), cut=0.3)
    table = pl.read_csv(config.parent / "events.csv").select(
        "item_id", pl.col("timestamp").str.to_datetime(time_zone="UTC")
    )
    times = table["timestamp"].dt.timestamp("us").to_numpy()
    cut = int(np.quantile(times, 0.3))
    assert latest == [times[times < cut].max()] * 3
    early = table.filter(pl.col("timestamp").dt.timestamp("us") < cut)
    figures = result.figures
    assert figures["items_cold"] == table["item_id"].n_unique() - early["item_id"].n_unique() > 0
    linear = max(figures[f"{name}, among cold: hr_at_10"] for name in REFERENCES)
    assert result.bars[0].value == pytest.approx(figures["two towers + reranker, among cold: hr_at_10"] / linear)
    assert "two towers, among cold: hr_at_10" in figures


def test_all_items_of_a_category_are_cold(config):
    figures = cold.run(short=True, config=str(config), category="third2").figures
    assert (figures["items"], figures["items_cold"]) == (200, 66)
    with pytest.raises(ConfigError, match="no item has the category 'theme9'; choose from t"):
        cold.run(short=True, config=str(config), category="theme9")
    with pytest.raises(ConfigError, match="--cut and --category each decide which items are cold"):
        cold.run(short=True, config=str(config), category="theme2", cut=0.5)


def test_each_reference_has_the_better_of_two_decays(config, monkeypatch):
    both = cold.run(short=True, config=str(config)).figures
    single = []
    for decay in cold.DECAYS:
        with monkeypatch.context() as patch:
            patch.setattr(cold, "DECAYS", (decay,))
            single.append(cold.run(short=True, config=str(config)).figures)
    for name in REFERENCES:
        for among in ("among cold", "among all"):
            key = f"{name}, {among}: hr_at_10"
            assert both[key] == max(figures[key] for figures in single)


def test_a_cut_needs_a_split_by_time(config):
    path = config.with_name("sequences.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"split": {"kind": "leave-last-out"}}))
    with pytest.raises(ConfigError, match=r"split\.kind is leave-last-out; --cut needs split\.kind time"):
        cold.run(short=True, config=str(path), cut=0.3)


def test_the_seed_decides_which_items_are_cold(config):
    first, second = (cold.run(short=True, config=str(config), seed=seed).figures["events"] for seed in (0, 1))
    assert first != second


def test_the_sum_is_of_standard_scores_over_the_cold_items():
    events = toy_log([(0, 0, 1), (0, 1, 2), (1, 1, 3), (1, 2, 4), (2, 0, 5)], n_items=6)
    texts = ["red cup", "cup tea", "tea pot", "red", "pot lid", "cup pot"]
    profile, bridge = fit_tfidf(events, texts), fit_bridge(events, texts, dim=2)
    mask = np.array([False, False, False, True, True, True])
    positives = Ragged.of([[0, 1], [2]])
    expected = sum(
        (scores - scores[:, mask].mean(1, keepdims=True)) / scores[:, mask].std(1, keepdims=True)
        for scores in (profile.scores(positives), bridge.scores(positives))
    )
    total = cold.ScoreSumRecommender(profile.popularity, profile.fitted_until, bridge, profile, mask)
    assert isinstance(total, DenseRecommender)
    np.testing.assert_allclose(total.scores(positives), expected, rtol=1e-4, atol=1e-5)


def test_a_cut_without_new_items_after_it_is_rejected(config, tmp_path):
    shutil.copytree(config.parent, tmp_path, dirs_exist_ok=True)
    first = (tmp_path / "events.csv").read_text()
    repeats = "".join(line + "\n" for line in first.splitlines()[1:]).replace("2024-", "2025-")
    (tmp_path / "events.csv").write_text(first + repeats)
    settings = yaml.safe_load(config.read_text())
    settings["data"]["path"] = str(tmp_path)
    (tmp_path / "themes.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(DataError, match="no positive event of a cold item"):
        cold.run(short=True, config=str(tmp_path / "themes.yaml"), cut=0.6)


def test_the_contribution_of_a_kind_of_content_has_an_interval(config, tmp_path):
    shutil.copytree(config.parent, tmp_path, dirs_exist_ok=True)
    settings = yaml.safe_load(config.read_text())
    settings["data"]["path"], settings["cache"] = str(tmp_path), str(tmp_path / "cache")
    path = tmp_path / "themes.yaml"
    with pytest.raises(ConfigError, match=r"--without image needs an encoder of kind builtin"):
        cold.run(short=True, config=str(config), without="image")
    path.write_text(yaml.safe_dump(settings | {"encoder": {"kind": "builtin"}}))
    with pytest.raises(ConfigError, match=r"--without smell: .*'image'"):
        cold.run(short=True, config=str(path), without="smell")
    figures = cold.run(short=True, config=str(path), without="sound").figures
    for among in ("among cold", "among all"):  # no item has a sound
        with_sounds = figures[f"two towers, {among}: hr_at_10"]
        assert figures[f"two towers without sound, {among}: hr_at_10"] == with_sounds
        change = figures[f"two towers - two towers without sound, {among}: by user, 95 %"]
        assert change == {"mean": 0, "low": 0, "high": 0}


def test_events_with_items_that_the_user_has_seen_are_no_targets(config, tmp_path):
    """No list may hold them."""
    shutil.copytree(config.parent, tmp_path, dirs_exist_ok=True)
    events = (tmp_path / "events.csv").read_text()
    repeats = "".join(line + "\n" for line in events.splitlines()[1:]).replace("2024-", "2025-")
    settings = yaml.safe_load(config.read_text())
    settings["data"]["path"] = str(tmp_path)
    path = tmp_path / "repeated.yaml"
    path.write_text(yaml.safe_dump(settings))
    found = []
    for text in (events, events + repeats):
        (tmp_path / "events.csv").write_text(text)
        test = cold._cold_test(cold.load_config(path), "", seed=0, cut=None, category=None, n_events=10**6)
        pairs = set(zip(test.targets.users.tolist(), test.targets.item.tolist(), strict=True))
        assert len(pairs) == len(test.targets.item)
        found.append(pairs)
    assert found[0] == found[1]
