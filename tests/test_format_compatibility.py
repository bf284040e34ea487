"""This version reads what version 0.1.0 (commit 30749cf) wrote: bundle, log, vector cache, store, configurations.

That version wrote the files and the expected answers in `fixtures/v0_1` with `fixtures/v0_1/write.py`.
"""

import base64
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import redis
from toy_data import noise

from experiments.config import load_config
from features.content.spaces import Embedded, SpaceKey, unit
from features.content.vector_cache import VectorCache
from features.log.item_changes import ItemChanges
from features.log.item_feed import item_changes
from features.log.reader import events_frame, read
from features.log.records import STREAMS
from features.log.upkeep.prune import prune
from features.schema import EventRules
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from features.store.user_state import UserStateStatus
from recsys.bundle.io import load_bundle
from recsys.bundle.upsert import upsert_items

OLD = Path(__file__).parent / "fixtures" / "v0_1"
ANSWERS = json.loads((OLD / "answers.json").read_text(encoding="utf-8"))


def assert_same(slates, expected):
    """The slates are those of version 0.1.0; among items with equal scores that version left the order open."""
    scores = np.array(expected["scores"], np.float32)
    np.testing.assert_allclose(slates.scores, scores, atol=1e-5)
    found, before = (
        np.take_along_axis(rows, np.lexsort((rows, -scores)), axis=1)
        for rows in (slates.rows, np.array(expected["rows"]))
    )
    assert found.tolist() == before.tolist()


def test_the_bundle_gives_the_same_answers():
    expected = ANSWERS["bundle"]
    bundle = load_bundle(OLD / "bundle" / expected["fingerprint"])
    assert bundle.fingerprint == expected["fingerprint"]
    states = noise().states(np.array([0, 1, 2, -1]), np.full(4, expected["as_of"]))
    assert_same(bundle.recommender.recommend(states, 8), expected["recommend"])
    assert_same(bundle.recommender.recommend(states, 8, exclude=states.seen_items()), expected["recommend_unseen"])
    assert_same(bundle.similar(np.array([0, 7]), 5), expected["similar"])
    queries = unit(np.random.default_rng(2).standard_normal((1, 4)).astype(np.float32))
    assert_same(bundle.search(queries, 5), expected["search"])
    assert_same(bundle.search_for(queries, states[np.array([1])], 5, weight=0.3), expected["search_for"])
    assert bundle.content is not None
    cosines_by_channel = bundle.content.near_item(1, np.array([2, 4, 6]))
    assert cosines_by_channel.keys() == expected["near"].keys()
    for name, cosines in cosines_by_channel.items():
        for cosine, before in zip(cosines, expected["near"][name], strict=True):
            assert cosine == (None if before is None else pytest.approx(before, abs=1e-5))


def test_an_upserted_item_gives_the_same_answers():
    expected = ANSWERS["bundle"]
    bundle = load_bundle(OLD / "bundle" / expected["fingerprint"])
    item = pl.DataFrame(
        {"item_id": ["new"], "title": ["Title 3 again"], "categories": [["a", "c"]], "available": [True]}
    )
    spaces = {"text": SpaceKey("words", "1", 6), "image": SpaceKey("pictures", "1", 5)}
    channels = {}
    for name, vector in expected["channels_of_new"].items():
        vectors = np.array([vector], np.float32)
        channels[name] = Embedded(spaces[name], vectors, np.asarray(vectors.any(axis=1)))
    states = noise().states(np.array([0, 1, 2, -1]), np.full(4, expected["as_of"]))
    assert_same(upsert_items(bundle, item, channels).recommender.recommend(states, 8), expected["upserted"])


def plain(value):
    """The value after a round trip through JSON."""
    return json.loads(json.dumps(value))


def test_the_log_gives_the_same_records():
    expected = ANSWERS["log"]
    results = [read(OLD / "log", stream=stream) for stream in STREAMS]
    in_order = {"event": 0, "exposure": 1, "item_put": 2, "item_gone": 2}
    # version 0.1.0 also wrote `"propensity": null` into every event
    records = [{key: value for key, value in record.items() if key != "propensity"} for record in expected["records"]]
    records.sort(key=lambda record: in_order[record["kind"]])
    # fields of exposures since then
    added = {"first_position": 1, "reasons": [], "exploration": None, "sample": None}
    records = [record | (added if record["kind"] == "exposure" else {}) for record in records]
    assert plain([asdict(record) for result in results for record in result.records]) == records
    for result in results:
        assert result.position == expected["position"]
        (damaged,), (before,) = result.damaged, expected["damaged"]
        assert (damaged.segment, damaged.length) == (before["segment"], before["length"])
    events = events_frame(OLD / "log").select("user_id", "item_id", "event", "timestamp", "value", "event_id")
    assert [[str(value) for value in row] for row in events.iter_rows()] == expected["events"]
    assert plain([asdict(change) for change in item_changes(OLD / "log")]) == expected["item_changes"]


def test_the_log_gives_the_same_records_after_it_is_taken_over(tmp_path):
    expected = ANSWERS["log"]
    folder = shutil.copytree(OLD / "log", tmp_path / "log")
    report = prune(folder, {})
    assert report is not None
    assert (report.taken_over, report.waiting) == (1, 0)
    events = events_frame(folder).select("user_id", "item_id", "event", "timestamp", "value", "event_id")
    assert [[str(value) for value in row] for row in events.iter_rows()] == expected["events"]
    newest = ItemChanges.of_changes(item_changes(OLD / "log"))
    assert ItemChanges.of(folder) == newest
    assert read(folder, expected["position"]).records == []
    assert len(read(folder).damaged) == 1


def test_the_vector_cache_is_read(tmp_path):
    expected = ANSWERS["cache"]
    folder = shutil.copytree(OLD / "cache", tmp_path / "cache")
    cache = VectorCache(folder, SpaceKey(**expected["space"]))
    got = cache.get(pl.Series("digest", [bytes([n]) * 32 for n in range(5)], dtype=pl.Binary))
    np.testing.assert_allclose(got.vectors, expected["vectors"])
    assert got.present.tolist() == expected["present"]
    assert [asdict(failure) for failure in got.failures] == expected["failures"]


def test_a_store_of_an_older_version_is_filled_anew():
    rules = EventRules(positive={"rating": 3.5, "click": None}, seen=("rating", "click"))
    server = RedisServer()
    try:
        client = redis.Redis.from_url(server.url)
        for key, entry in json.loads((OLD / "store.json").read_text(encoding="utf-8")).items():
            if entry["type"] == "zset":
                client.zadd(key, {base64.b64decode(member): score for member, score in entry["value"]})
            elif entry["type"] == "set":
                client.sadd(key, *map(base64.b64decode, entry["value"]))
            else:
                client.set(key, base64.b64decode(entry["value"]))
        client.close()
        store = RedisStore(server.url, rules)
        assert store.watermark() is None
        assert [s.status for s in store.read_users(["ann", "bob"])] == [UserStateStatus.STALE] * 2
        store.close()
    finally:
        server.stop()


@pytest.mark.parametrize("path", sorted((OLD / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_valid(path):
    environment = {"RECSYS_DATA": "data"}
    assert load_config(path, environment).name
