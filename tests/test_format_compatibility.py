"""What version 0.1.0 (commit 30749cf) wrote is read: the bundle answers, the log replays, cache and store are read.

The files and the answers in `fixtures/v0_1` were written by that version with `fixtures/v0_1/write.py`.
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
from features.log.event_log import events_frame, item_changes, read
from features.schema import EventRules
from features.store.redis import RedisStore
from features.store.redis_server import RedisServer
from recsys.bundle.io import load_bundle
from recsys.bundle.upsert import upsert_items

OLD = Path(__file__).parent / "fixtures" / "v0_1"
ANSWERS = json.loads((OLD / "answers.json").read_text(encoding="utf-8"))


def same(found, expected):
    assert found.rows.tolist() == expected["rows"]
    np.testing.assert_allclose(found.scores, expected["scores"], atol=1e-5)


def test_the_bundle_answers_as_it_did():
    expected = ANSWERS["bundle"]
    bundle = load_bundle(OLD / "bundle" / expected["fingerprint"])
    assert bundle.fingerprint == expected["fingerprint"]
    states = noise().states(np.array([0, 1, 2, -1]), np.full(4, expected["as_of"]))
    same(bundle.recommender.recommend(states, 8), expected["recommend"])
    same(bundle.recommender.recommend(states, 8, exclude=states.seen_items()), expected["recommend_unseen"])
    same(bundle.similar(np.array([0, 7]), 5), expected["similar"])
    asked = unit(np.random.default_rng(2).standard_normal((1, 4)).astype(np.float32))
    same(bundle.search(asked, 5), expected["search"])
    same(bundle.search_for(asked, states[np.array([1])], 5, weight=0.3), expected["search_for"])
    near = bundle.content.near_item(1, np.array([2, 4, 6]))
    assert near.keys() == expected["near"].keys()
    for name, cosines in near.items():
        for cosine, then in zip(cosines, expected["near"][name], strict=True):
            assert cosine == (None if then is None else pytest.approx(then, abs=1e-5))


def test_an_item_is_put_into_the_bundle_as_it_was():
    expected = ANSWERS["bundle"]
    bundle = load_bundle(OLD / "bundle" / expected["fingerprint"])
    item = pl.DataFrame(
        {"item_id": ["new"], "title": ["Title 3 again"], "categories": [["a", "c"]], "available": [True]}
    )
    spaces = {"text": SpaceKey("words", "1", 6), "image": SpaceKey("pictures", "1", 5)}
    channels = {}
    for name, vector in expected["channels_of_new"].items():
        vectors = np.array([vector], np.float32)
        channels[name] = Embedded(spaces[name], vectors, vectors.any(axis=1))
    states = noise().states(np.array([0, 1, 2, -1]), np.full(4, expected["as_of"]))
    same(upsert_items(bundle, item, channels).recommender.recommend(states, 8), expected["upserted"])


def plain(value):
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def test_the_log_replays_as_it_did():
    expected = ANSWERS["log"]
    found = read(OLD / "log")
    # version 0.1.0 also wrote `"propensity": null` into every event
    records = [{key: value for key, value in record.items() if key != "propensity"} for record in expected["records"]]
    assert plain([asdict(record) for record in found.records]) == records
    assert found.position == expected["position"]
    assert [asdict(one) for one in found.damaged] == expected["damaged"]
    assert len(found.damaged) == 1
    events = events_frame(OLD / "log").select("user_id", "item_id", "event", "timestamp", "value", "event_id")
    assert [[str(value) for value in row] for row in events.iter_rows()] == expected["events"]
    assert plain([asdict(change) for change in item_changes(OLD / "log")]) == expected["item_changes"]


def test_the_cache_of_vectors_is_read(tmp_path):
    expected = ANSWERS["cache"]
    folder = shutil.copytree(OLD / "cache", tmp_path / "cache")
    cache = VectorCache(folder, SpaceKey(**expected["space"]))
    got = cache.get(pl.Series("digest", [bytes([n]) * 32 for n in range(5)], dtype=pl.Binary))
    np.testing.assert_allclose(got.vectors, expected["vectors"])
    assert got.present.tolist() == expected["present"]
    assert [asdict(failure) for failure in got.failures] == expected["failures"]


def test_the_store_is_read():
    expected = ANSWERS["store"]
    rules = EventRules(positive={"rating": 3.5, "click": None}, seen=("rating", "click"))
    server = RedisServer()
    try:
        client = redis.Redis.from_url(server.url)
        for key, kept in json.loads((OLD / "store.json").read_text(encoding="utf-8")).items():
            if kept["type"] == "zset":
                client.zadd(key, {base64.b64decode(member): score for member, score in kept["value"]})
            elif kept["type"] == "set":
                client.sadd(key, *map(base64.b64decode, kept["value"]))
            else:
                client.set(key, base64.b64decode(kept["value"]))
        client.close()
        store = RedisStore(server.url, rules)
        for state, then in zip(store.read_users(["ann", "bob", "böb", "nobody"]), expected["users"], strict=True):
            assert (state.user_id, [*state.items]) == (then["user_id"], then["items"])
            assert [*state.events] == then["events"]
            assert state.times.tolist() == then["times"]
            assert [None if np.isnan(value) else value for value in state.values.tolist()] == then["values"]
            assert (sorted(state.seen), state.status) == (then["seen"], then["status"])
        assert store.recent_users(10) == expected["recent"]
        mark = store.watermark()
        assert (mark.log, mark.tables) == (expected["watermark"]["log"], expected["watermark"]["tables"])
        store.close()
    finally:
        server.stop()


@pytest.mark.parametrize("path", sorted((OLD / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_go_on_working(path):
    environment = {"RECSYS_DATA": "data"}
    assert load_config(path, environment).name
