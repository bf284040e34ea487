"""Why an item is recommended: the near item of the history, the features, and sentences that are never false."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from toy_data import FACTS, noise, toy_catalog, toy_log, toy_stage

from features.arrays import Floats
from features.content.spaces import Embedded, SpaceKey, unit
from features.instants import DAY
from features.interactions import Interactions, UserStates
from recsys.baselines import fit_popular
from recsys.bundle import formats
from recsys.bundle.io import load_bundle, save_bundle
from recsys.bundle.upsert import upsert_items
from recsys.content.content_space import ContentSpace
from recsys.ranking.explain import BEHAVIOUR, Channel, Explainer, Feature, Nearest, Why, strongest
from recsys.ranking.pair_features import FEATURES, PARTS
from recsys.ranking.reranker import Reranker

N = 50
NOW = 100 * DAY
COLD = 40
"""The items from this row on have no event."""


def apart(pairs: dict[tuple[int, int], float], n: int = N) -> Floats:
    """(n, n) unit rows at right angles, but for pairs (i, j): row j has this cosine with row i."""
    vectors = np.eye(n, dtype=np.float32)
    for (i, j), cosine in pairs.items():
        vectors[j] = 0
        vectors[j, [i, j]] = cosine, np.sqrt(1 - cosine**2)
    return vectors


def of_all(vectors: Floats, weights: sp.csr_array | None = None) -> Channel:
    """A channel in which all items have a vector."""
    return Channel(vectors, np.ones(N, dtype=np.bool_), weights)


def channel(pairs: dict[tuple[int, int], float], weights: sp.csr_array | None = None) -> Channel:
    return of_all(apart(pairs), weights)


def explainer(**channels: Channel) -> Explainer:
    popularity = np.where(np.arange(N) < COLD, 10.0, 0.0).astype(np.float32)
    return Explainer(toy_catalog(N), channels, popularity, N, None, NOW)


def state(*items: int, as_of: int = NOW) -> UserStates:
    """A user who chose these items, one microsecond apart."""
    return toy_log([(0, item, i + 1) for i, item in enumerate(items)], 1, N).states(np.array([0]), np.array([as_of]))


def why(explain: Explainer, taken: list[int], row: int, source: str = "recent", **more: object) -> Why:
    (found,) = explain.explain(state(*taken), np.array([row]), [source], None, **more)  # type: ignore[arg-type]
    return found


# --- the near item


def test_the_nearest_item_in_the_channel_where_it_is_clearest() -> None:
    text, image = channel({(0, 2): 0.8, (1, 3): 0.6}), channel({(0, 2): 0.95, (4, 5): 0.9})
    explain = explainer(text=text, image=image)
    nearest, is_like = explain.near(np.array([0, 1, 4]), np.array([2, 3, 5, 6]))
    assert nearest[3] is None
    assert [found and (found.item_id, found.title, found.channel) for found in nearest[:3]] == [
        ("i0", "Title 0", "image"),
        ("i1", "Title 1", "text"),
        ("i4", "Title 4", "image"),
    ]
    assert [found and found.cosine for found in nearest[:3]] == pytest.approx([0.95, 0.6, 0.9])
    # with the mean, item 2 has the largest cosine in both channels; the second largest is below the limit
    assert is_like.tolist() == [True, False, False, False]


def test_of_several_near_items_the_one_of_the_largest_cosine() -> None:
    vectors = apart({})
    vectors[2] = 0
    vectors[2, [0, 1, 2]] = 0.6, 0.62, np.sqrt(1 - 0.36 - 0.62**2)
    explain = explainer(text=of_all(vectors))
    assert [found and found.item_id for found in explain.near(np.array([0, 1]), np.array([2]))[0]] == ["i1"]
    # sorted, item 2 has 47 zeros, 0.6 and 0.62: its quantile .99 is at place 48.51, above 0.6
    assert explain.near(np.array([0]), np.array([2]))[0] == [None]


def test_limits_by_hand() -> None:
    text = channel({(0, 2): 0.8})
    cosines, limits = text.compare(np.array([0, 7]), np.array([2, 0, 9]))
    # sorted, items 0 and 2 have themselves as -1, 48 zeros and 0.8: the quantile .99 is at place 48.51
    assert text.limits(np.array([0, 2, 7])).tolist() == pytest.approx([0.51 * 0.8, 0.51 * 0.8, 0.0])
    # the mean of items 0 and 7 has 47 zeros and 0.8 / sqrt 2 with the other 48: place 46.53
    of_mean = 0.53 * 0.8 / np.sqrt(2)
    assert limits[:, 2].tolist() == pytest.approx([0.51 * 0.8, 0.0, of_mean])
    assert limits[:, 0].tolist() == pytest.approx([0.51 * 0.8] * 3)  # never less than that of the shown item
    assert of_mean < 0.51 * 0.8
    assert cosines[:2].tolist() == [[pytest.approx(0.8), -np.inf, 0.0], [0.0, 0.0, 0.0]]
    assert text.pair_limit == 0.0


def test_where_many_items_are_as_near_none_is_named() -> None:
    same = np.tile(np.eye(1, 4, dtype=np.float32), (N, 1))
    assert why(explainer(text=of_all(same)), [0], 2) == Why("recent", None, (), "Suggested for you")
    groups = np.eye(5, dtype=np.float32)[np.arange(N) % 5]  # ten items each
    assert why(explainer(text=of_all(groups)), [0], 5).nearest is None


def test_an_item_that_all_others_are_far_from_is_not_named() -> None:
    vectors = apart({(0, 2): 0.3})
    vectors[3:] = unit(vectors[3:] + 3 * vectors[1])  # the others have cosines of 0.9
    text = of_all(vectors)
    assert text.limits(np.array([0, 2])).tolist() == pytest.approx([0.51 * 0.3] * 2)
    assert text.pair_limit == pytest.approx(0.9)
    assert text.compare(np.array([0]), np.array([2]))[1][0, 0] == text.pair_limit
    assert why(explainer(text=text), [0], 2).nearest is None


def test_an_absent_vector_is_near_to_nothing() -> None:
    vectors = apart({(0, 2): 0.8})
    for absent in (0, 2):
        explain = explainer(text=Channel(vectors, np.arange(N) != absent))
        assert why(explain, [0, 9], 2).nearest is None
    assert why(explainer(text=Channel(vectors, np.zeros(N, np.bool_))), [0], 2).sentence == "Suggested for you"


@pytest.mark.parametrize("present", [1, 2])
def test_in_a_catalogue_of_two_items_none_is_near(present: int) -> None:
    vectors = apart({(0, 1): 0.9})
    explain = explainer(text=Channel(vectors, np.arange(N) < present))
    assert why(explain, [0], 1).sentence == "Suggested for you"


def test_by_behaviour_only_where_users_chose_both() -> None:
    pairs = {(0, 2): 0.8}
    together = {weight: sp.csr_array(([weight], ([0], [2])), shape=(N, N)) for weight in (0.05, 0.001, -0.05)}
    found = {w: why(explainer(behaviour=channel(pairs, weights=m)), [0], 2) for w, m in together.items()}
    assert found[0.05].sentence == "Because you chose Title 0: often chosen by the same people"
    assert found[0.05].nearest == Nearest("i0", "Title 0", BEHAVIOUR, float(np.float32(0.8)))
    for weight in (0.001, -0.05):
        assert (found[weight].nearest, found[weight].sentence) == (None, "Like what you chose before")
    reverse = sp.csr_array(([0.05], ([2], [0])), shape=(N, N))
    assert why(explainer(behaviour=channel(pairs, weights=reverse)), [0], 2).nearest is None


def test_a_large_catalogue_is_sampled() -> None:
    present = np.arange(1500) % 4 > 0
    sample = Channel(np.eye(1500, 2, dtype=np.float32), present).sample
    assert len(set(sample.tolist())) == len(sample) == 1000
    assert present[sample].all()
    assert Channel(np.eye(8, dtype=np.float32), np.arange(8) > 5).sample.size == 2


# --- sentences


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text", "similar description"),
        ("title", "similar title"),
        ("image", "similar pictures"),
        ("sound", "similar sound"),
        ("speech", "similar speech"),
        ("smell", "similar content"),
    ],
)
def test_what_is_alike_in_each_channel(name: str, words: str) -> None:
    explain = explainer(**{name: channel({(0, 2): 0.8})})
    assert why(explain, [0], 2).sentence == f"Because you chose Title 0: {words}"


@pytest.mark.parametrize("title", [None, "", "  "])
def test_an_item_without_a_title_is_named_by_its_id(title: str | None) -> None:
    explain = explainer(text=channel({(0, 2): 0.8}))
    frame = explain.catalog.frame
    titles = pl.Series("title", [title, *frame["title"][1:]], dtype=pl.String)
    explain = replace(explain, catalog=replace(explain.catalog, frame=frame.with_columns(titles)))
    assert why(explain, [0], 2).sentence == "Because you chose i0: similar description"
    without = replace(explain, catalog=replace(explain.catalog, frame=frame.drop("title")))
    assert why(without, [0], 2).nearest == Nearest("i0", None, "text", float(np.float32(0.8)))


@pytest.mark.parametrize(
    ("times", "complete", "sentence"),
    [
        (1, True, "You chose it once before"),
        (3, True, "You chose it 3 times before"),
        (1, False, "You chose it before"),
        (3, False, "You chose it at least 3 times before"),
    ],
)
@pytest.mark.parametrize("source", ["own", "recent"])
def test_how_often_an_item_was_chosen(times: int, complete: bool, sentence: str, source: str) -> None:
    explain = explainer(text=channel({(0, 2): 0.8}))
    found = why(explain, [2] * times + [0], 2, source, complete=complete)
    assert (found.sentence, found.source) == (sentence, source)
    assert found.nearest is not None
    assert found.nearest.item_id == "i0"  # never the item itself


def test_only_positive_events_count() -> None:
    log = toy_log([(0, 0, 1, False), (0, 2, 2, False), (0, 2, 3), (0, 9, 4)], 1, N)
    explain = explainer(text=channel({(0, 2): 0.8, (0, 1): 0.8}))
    states = log.states(np.array([0]), np.array([NOW]))
    found = explain.explain(states, np.array([1, 2]), ["recent", "own"], None)
    assert [each.sentence for each in found] == ["Suggested for you", "You chose it once before"]


def test_like_the_history_where_no_single_item_is_near() -> None:
    vectors = apart({})
    for row in (4, 5):  # as near to item 0 as the shown item is
        vectors[row] = unit((vectors[row] + 1.2 * vectors[0])[None])[0]
    vectors[2] = unit((vectors[2] + 0.7 * vectors[0] + 0.7 * vectors[1] + 0.7 * vectors[3])[None])[0]
    vectors[[6, 7, 8, 10]] = unit(vectors[[6, 7, 8, 10]] + 1.2 * vectors[[1, 1, 3, 3]])
    found = why(explainer(text=of_all(vectors)), [0, 1, 3], 2)
    assert (found.nearest, found.sentence) == (None, "Like what you chose before")


def test_an_item_that_may_not_be_named_is_not() -> None:
    explain = explainer(text=channel({(0, 2): 0.8}))
    found = why(explain, [0, 9], 2, history=np.array([9, 11]))
    assert (found.nearest, found.sentence) == (None, "Suggested for you")


@pytest.mark.parametrize(
    ("count", "days", "age", "sentence"),
    [
        (20.0, None, 0, "Popular"),
        (20.0, 30.0, 0, "Popular in the last 30 days"),
        (20.0, 1.5, 2, "Popular in the last 1.5 days"),
        (20.0, 30.0, 3, "Popular"),  # in the 30 days before the training
        (7.9, 30.0, 0, "Suggested for you"),  # the mean of the items is 7.958
        (8.5, 30.0, 0, "Popular in the last 30 days"),
    ],
)
def test_popular_items(count: float, days: float | None, age: int, sentence: str) -> None:
    explain = explainer(text=channel({(0, 2): 0.8}))
    popularity = explain.popularity.copy()
    popularity[2] = count
    explain = replace(explain, popularity=popularity, popular_days=days, fitted_until=NOW - age * DAY)
    for history in ([], [0, 2]):
        assert why(explain, history, 2, "popular") == Why("popular", None, (), sentence)


@pytest.mark.parametrize(("age", "sentence"), [(2, "Chosen by others in the last 7 days"), (3, "Popular")])
def test_trending_items(age: int, sentence: str) -> None:
    explain = replace(explainer(text=channel({(0, 2): 0.8})), fitted_until=NOW - age * DAY)
    assert why(explain, [0], 2, "trending") == Why("trending", None, (), sentence)


def test_fresh_items() -> None:
    explain = explainer(text=channel({(0, COLD): 0.8}))
    assert why(explain, [0], COLD + 1, "recent").sentence == "Suggested for you"
    explain = replace(explain, trained=COLD)  # both were added after the training
    assert why(explain, [0], COLD, "fresh").sentence == "New, like what you chose before"
    assert why(explain, [0], COLD + 1, "fresh").sentence == "New"
    assert why(explain, [0], COLD + 1, "recent").sentence == "Suggested for you"
    assert why(explain, [0], 3, "fresh").sentence == "Suggested for you"  # it has events


def test_without_a_recent_event_an_item_was_popular_of_all_time_at_most() -> None:
    explain = replace(explainer(), popularity=np.where(np.arange(N) == 2, 0.9, 0).astype(np.float32), popular_days=30)
    assert why(explain, [], 2, "popular").sentence == "Popular"


def test_new_items() -> None:
    text = channel({(0, COLD): 0.8, (1, 2): 0.8, (9, COLD + 1): 0.8})
    explain = explainer(text=text)

    def sentence(row: int, published: int | None, **more: Any) -> str:
        times = explain.catalog.published.copy()
        if published is not None:
            times[row] = published
        changed = replace(explain, catalog=replace(explain.catalog, published=times), **more)
        return why(changed, [1 if row == 2 else 0], row).sentence

    named = "Because you chose Title 0: similar description"
    assert sentence(COLD, NOW - 30 * DAY) == "New, like what you chose before"
    assert sentence(COLD, NOW - 31 * DAY) == named  # nobody chose it, but it is not new
    assert sentence(COLD, None) == named
    assert sentence(COLD, None, trained=COLD) == "New, like what you chose before"  # added after the training
    assert sentence(COLD, None, trained=COLD + 1) == named
    assert sentence(COLD, None, trained=COLD, fitted_until=NOW - 31 * DAY) == named
    assert sentence(COLD, NOW - 31 * DAY, trained=COLD) == named
    assert sentence(2, NOW) == named.replace("0", "1")  # it has events
    assert sentence(COLD + 1, NOW) == "Suggested for you"  # new, and near to nothing that the user chose


@given(
    seed=st.integers(0, 10**6),
    history=st.lists(st.integers(0, N - 1), max_size=8),
    shown=st.lists(st.integers(0, N - 1), min_size=1, max_size=10, unique=True),
    d=st.sampled_from([2, 8, 40]),
)
def test_a_sentence_names_only_items_of_the_history_that_are_really_near(
    seed: int, history: list[int], shown: list[int], d: int
) -> None:
    rng = np.random.default_rng(seed)
    channels = {}
    for name in ("text", "image", BEHAVIOUR):
        present = rng.random(N) < 0.8
        vectors = unit(rng.standard_normal((N, d)).astype(np.float32)) * present[:, None]
        weights = sp.csr_array(rng.random((N, N)) * (rng.random((N, N)) < 0.5))
        channels[name] = Channel(vectors, present, weights if name == BEHAVIOUR else None)
    explain = explainer(**channels)
    for row, found in zip(
        shown, explain.explain(state(*history), np.array(shown), ["recent"] * len(shown), None), strict=True
    ):
        if row in history:
            assert found.sentence.startswith("You chose it")
            assert str(history.count(row)) in found.sentence.replace("once", "1")
        if found.nearest is None:
            assert "Title" not in found.sentence
            continue
        named = int(found.nearest.item_id[1:])
        assert named in history
        assert named != row
        used = channels[found.nearest.channel]
        assert used.present[[named, row]].all()
        cosines = used.vectors[used.present] @ used.vectors[[named, row]].T
        cosine = float(used.vectors[row] @ used.vectors[named])
        assert found.nearest.cosine == pytest.approx(cosine, abs=1e-5)
        assert (cosines > cosine + 1e-5).sum(0).max() <= 1  # of 50 items, only each itself is nearer to it
        if used.weights is not None:
            assert used.weights[named, row] >= 0.01
        if "Title" in found.sentence:
            assert f"Title {named}:" in found.sentence


# --- features


def test_the_strongest_features() -> None:
    parts = np.zeros(len(FEATURES) + 1)
    parts[[0, 2, 5, 9, -1]] = 0.5, 2, -3, 0.5, 9
    assert strongest(parts) == (
        Feature("similarity_last", 2.0),
        Feature("retrieval_score", 0.5),
        Feature("neighbours_short", 0.5),
    )
    assert strongest(-np.ones(len(FEATURES) + 1)) == ()


EVENTS = noise()
RERANKED = toy_stage(EVENTS)[0]


def of_user(user: int, events: Interactions = EVENTS) -> UserStates:
    return events.states(np.array([user]), np.array([events.latest + 1]))


@given(user=st.integers(0, 59), k=st.integers(1, 30), candidates=st.sampled_from([4, 12, 30]))
def test_contributions_add_up_to_the_scores(user: int, k: int, candidates: int) -> None:
    recommender, states = replace(RERANKED, candidates=candidates), of_user(user)
    exclude = states.seen_items()
    found = recommender.recommend(states, k, exclude=exclude)
    rows = found.rows[0][found.rows[0] >= 0]
    parts = recommender.contributions(states, rows, k, exclude=exclude)
    assert parts is not None
    assert parts.shape == (len(rows), len(PARTS) + 1)
    np.testing.assert_allclose(parts.sum(1), found.scores[0][: len(rows)], rtol=1e-5, atol=1e-6)
    assert len(np.unique(parts[:, -1])) == 1  # the expected value
    ranked = recommender.ranked(states, k, exclude=exclude)
    np.testing.assert_array_equal(ranked.rows[0][:k], found.rows[0])
    assert (ranked.rows[0] >= 0).sum() == min(max(k, candidates), 30 - len(np.unique(exclude.pairs()[1])))
    scores = recommender.retrieval_scores(states)
    assert [recommender.item_scores(states, row)[0] for row in (0, 3)] == pytest.approx(scores[[0, 3]], abs=1e-6)
    retrieved = recommender.retrieve(states, max(k, candidates), exclude=exclude)
    kept = retrieved.rows[0] >= 0
    np.testing.assert_allclose(scores[retrieved.rows[0][kept]], retrieved.scores[0][kept], rtol=1e-4, atol=1e-6)


def test_without_a_reranker_there_are_no_contributions() -> None:
    plain = replace(RERANKED, reranker=None)
    assert plain.contributions(of_user(0), np.array([1]), 3) is None
    np.testing.assert_array_equal(plain.ranked(of_user(0), 3).rows, plain.recommend(of_user(0), 3).rows)
    assert RERANKED.contributions(of_user(0), np.zeros(0, np.int64), 3) is None
    assert plain.features(of_user(0), np.array([1]), 3) is None
    assert RERANKED.features(of_user(0), np.zeros(0, np.int64), 3) is None


def test_the_features_of_shown_items_are_those_that_the_reranker_read() -> None:
    states, reranker = of_user(3), RERANKED.reranker
    assert isinstance(reranker, Reranker)
    exclude = states.seen_items()
    shown = RERANKED.recommend(states, 5, exclude=exclude)
    brought = int(exclude.pairs()[1][0])  # by a rule: it is no candidate
    rows = np.append(shown.rows[0], brought)
    found = RERANKED.features(states, rows, 5, exclude=exclude)
    assert found is not None
    assert found.shape == (6, len(FEATURES))
    np.testing.assert_allclose(reranker.predict(found[None, :5])[0], shown.scores[0], rtol=1e-5, atol=1e-6)
    assert np.isnan(found[5]).all()
    candidates = RERANKED.retrieve(states, RERANKED.candidates, exclude=exclude)
    place = [candidates.rows[0].tolist().index(row) for row in shown.rows[0].tolist()]
    assert found[:5, FEATURES.index("retrieval_rank")].tolist() == place


def test_the_features_of_a_candidate_are_those_of_its_place() -> None:
    states, reranker = of_user(3), RERANKED.reranker
    candidates = RERANKED.retrieve(states, 20)
    assert isinstance(reranker, Reranker)
    scores = reranker.score(states, candidates)[0]
    parts = reranker.contributions(states, candidates, np.array([7, 2]))
    np.testing.assert_allclose(parts.sum(1), scores[[7, 2]], rtol=1e-5, atol=1e-6)
    lift = PARTS.index("cold_lift")
    assert not parts[:, lift].any()
    cold = np.isin(np.arange(len(reranker.features.is_cold)), candidates.rows[0, 7])
    features = replace(reranker.features)
    vars(features)["is_cold"] = cold
    lifted = replace(reranker, cold_lift=0.5, features=features)
    np.testing.assert_array_equal(lifted.contributions(states, candidates, np.array([7, 2]))[:, lift], [0.5, 0])
    assert strongest(lifted.contributions(states, candidates, np.array([7]))[0])[0].name == "cold_lift"


# --- the bundle


@pytest.mark.parametrize("days", [None, 30.0])
def test_the_explainer_of_a_bundle(tmp_path: Path, days: float | None) -> None:
    vectors = unit(np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32))
    catalog = toy_catalog(30, text=vectors)
    stage, catalog, statistics = toy_stage(EVENTS, catalog)
    stage = replace(stage, fallback=fit_popular(EVENTS, days=days))
    space = SpaceKey("words", "1", 4)
    content = ContentSpace(space, None, {"text": Embedded(space, vectors, np.arange(30) != 4)})
    bundle = load_bundle(save_bundle(tmp_path, catalog, stage, statistics, FACTS, content))
    explain = bundle.explainer
    assert list(explain.channels) == ["text", BEHAVIOUR]
    assert (explain.popular_days, explain.fitted_until, explain.trained) == (days, EVENTS.latest, 30)
    assert explain.channels["text"].present.tolist() == (np.arange(30) != 4).tolist()
    behaviour = explain.channels[BEHAVIOUR]
    assert behaviour.present.tolist() == (statistics.total > 0).tolist()
    assert behaviour.weights is not None
    assert behaviour.weights.shape == (30, 30)
    np.testing.assert_array_equal(explain.popularity > 0, statistics.total > 0)
    assert bundle.explainer is explain
    item = catalog.frame[:1].with_columns(item_id=pl.lit("added"))
    after = upsert_items(bundle, item, {"text": Embedded(space, vectors[:1], np.ones(1, np.bool_))}).explainer
    assert (after.trained, after.popularity[30], len(after.catalog)) == (30, 0.0, 31)
    assert after.channels["text"].present[30]
    assert not after.channels[BEHAVIOUR].present[30]
    shown = np.array([30, 3])
    assert len(after.explain(of_user(0), shown, ["recent"] * 2, None)) == 2
    plain = replace(bundle, content=None, recommender=replace(bundle.recommender, reranker=None))
    assert dict(plain.explainer.channels) == {}


def test_a_bundle_that_does_not_say_the_period(tmp_path: Path) -> None:
    stage, catalog, statistics = toy_stage(EVENTS)
    stage = replace(stage, fallback=fit_popular(EVENTS, days=30))
    folder = save_bundle(tmp_path, catalog, stage, statistics, FACTS)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["popular_days"]
    assert formats.fingerprint_of(manifest) == folder.name
    manifest["checksum"] = formats.checksum_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert load_bundle(folder).explainer.popular_days is None
