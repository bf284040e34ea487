"""The data set of tables and the event log: rows, ignored events, the hash, and content vectors."""

from zlib import crc32

import numpy as np
import polars as pl
import pytest
from toy_data import START, toy_config, write_tables

from experiments.config import load_config
from experiments.dataset import embed_catalog, encode_contents, keep_frequent, load_dataset
from features.content.encoders.text import MiniLM
from features.content.parts import Limits
from features.errors import ConfigError
from features.log.event_log import EventLog
from features.log.reader import events_frame
from features.log.records import Event, EventUndone
from features.log.status import log_status


@pytest.fixture
def load(tmp_path):
    """Load the toy data set with changed sections of its configuration."""
    write_tables(tmp_path / "data", n_users=10, n_items=6, length=5)

    def call(**sections):
        return load_dataset(load_config(toy_config(tmp_path, **sections), {}))

    return call


def append_events(tmp_path, *events, event="take"):
    log = EventLog(tmp_path / "log")
    log.append_now(
        [Event(user_id=u, item_id=i, event=event, timestamp=t, event_id=f"{u} {i} {t}") for u, i, t in events]
    )
    log.close()


@pytest.fixture
def logged(tmp_path):
    """The section of a configuration that reads a log."""
    data = {"source": "folder", "path": str(tmp_path / "data"), "log": str(tmp_path / "log")}
    return {"data": data | {"events": {"positive": {"take": None}}}}


def ids(dataset):
    """The events as (user id, item id, time), in the order of the log."""
    events = dataset.events
    return [
        (dataset.users.ids[u], dataset.catalog.ids.ids[i], int(t))
        for u, i, t in zip(events.users, events.items, events.times, strict=True)
    ]


def test_rows_correspond_to_the_ids_of_the_tables(load, tmp_path):
    dataset = load()
    table = pl.read_csv(tmp_path / "data" / "events.csv", try_parse_dates=True)
    expected = {
        (u, i, int(t))
        for u, i, t in zip(
            table["user_id"], table["item_id"], table["timestamp"].dt.timestamp("us").to_list(), strict=True
        )
    }
    assert set(ids(dataset)) == expected
    assert len(dataset.events) == 50
    assert dataset.events.positive.all()
    assert set(dataset.catalog.ids.ids) == {f"i{i}" for i in range(6)}
    row = dataset.catalog.ids.row("i4")
    assert dataset.catalog.category_names[dataset.catalog.categories[row, 0]] == "even"
    assert dataset.catalog.frame["title"][row] == "Title 4"
    assert [c.kept for c in dataset.report.counts] == [6, 50]


def test_rows_are_shuffled_by_the_seed(load):
    orders = [load(seed=seed).catalog.ids.ids for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != tuple(sorted(orders[0]))


def test_the_configuration_defines_positive_and_seen_events(load, tmp_path):
    data = {"source": "folder", "path": str(tmp_path / "data")}
    dataset = load(data=data | {"events": {"positive": {"buy": None}, "seen": ["buy"]}})
    assert not dataset.events.positive.any()
    assert not dataset.events.seen.any()


def test_event_weights_follow_the_configuration(load, tmp_path):
    append_events(tmp_path, ("u1", "i2", START), event="buy")
    append_events(tmp_path, ("u0", "i3", START + 5), ("u1", "i2", START + 7))
    data = {"source": "folder", "path": str(tmp_path / "data"), "log": str(tmp_path / "log")}
    rules = {"positive": {"take": None, "buy": None}}
    assert load(data=data | {"events": rules}).events.weights is None
    dataset = load(data=data | {"events": rules | {"weights": {"buy": 3.0}}})
    assert [3.0 if event == ("u1", "i2", START) else 1.0 for event in ids(dataset)] == dataset.events.weights.tolist()
    assert dataset.events.weights.sum() == len(dataset.events) + 2


def test_event_types_are_those_that_the_rules_name(load, tmp_path):
    append_events(tmp_path, ("u1", "i2", START), event="buy")
    append_events(tmp_path, ("u0", "i3", START + 5))
    append_events(tmp_path, ("u2", "i3", START + 6), event="tkae")
    alone = load().events
    assert (alone.types, alone.n_types) == (None, 1)  # with a single named type, types are not used
    data = {"source": "folder", "path": str(tmp_path / "data"), "log": str(tmp_path / "log")}
    rules = {"positive": {"take": None}, "seen": ["take", "buy"]}
    dataset = load(data=data | {"events": rules})
    known = {("u1", "i2", START): 1, ("u2", "i3", START + 6): 0}
    assert dataset.events.types.tolist() == [
        known.get(event, 2) for event in ids(dataset)
    ]  # 0: unnamed, 1: buy, 2: take
    assert dataset.events.n_types == 3


def test_events_of_the_log_are_added_to_those_of_the_table(load, tmp_path):
    before = load()
    append_events(tmp_path, ("u1", "i2", START), ("new user", "i3", START + 5), ("u1", "i2", START))
    after = load()
    assert set(ids(after)) - set(ids(before)) == {("u1", "i2", START), ("new user", "i3", START + 5)}
    assert len(after.events) == len(before.events) + 2  # the repeated event counts once
    assert "new user" in after.users
    assert after.hash != before.hash


def test_events_of_an_exported_log_count_once(load, tmp_path):
    append_events(tmp_path, ("u1", "i2", START), ("u2", "i3", START + 5))
    before = load()
    table, logged = pl.read_csv(tmp_path / "data" / "events.csv"), events_frame(tmp_path / "log")
    exported = logged.with_columns(pl.col("timestamp").dt.to_string("iso:strict"))
    pl.concat([table, exported], how="diagonal_relaxed").write_csv(tmp_path / "data" / "events.csv")
    after = load()
    assert (before.duplicates, after.duplicates) == (0, 2)
    assert ids(after) == ids(before)


def test_logged_events_of_unknown_items_are_counted(load, tmp_path):
    append_events(tmp_path, ("u1", "unknown item", START), ("u1", "i2", START))
    dataset = load()
    assert dataset.unknown_items == 1
    assert len(dataset.events) == 51


def notes(dataset):
    return [note for note in dataset.report.notes if "no events yet" not in note]


def append_rows(tmp_path, *rows):
    with (tmp_path / "data" / "events.csv").open("a") as file:
        file.writelines(f"{user},{item},{event},{time}\n" for user, item, event, time in rows)


def test_the_report_says_what_the_log_adds(load, tmp_path):
    data = {"source": "folder", "path": str(tmp_path / "data"), "log": str(tmp_path / "log")}
    rules = {"events": {"positive": {"take": None}}}
    assert load(data=data | rules).report.notes == (f"event log: {tmp_path / 'log'} has no events yet",)
    append_events(tmp_path, ("u1", "unknown item", START), ("u1", "i2", START + 1), event="Take")
    assert notes(load(data=data | rules)) == [
        "event log: event types that data.events does not name, which count as seen: 'Take' (2), is 'take' meant?",
        "event log: event types in data.events that no event has: 'take'",
        "1 logged events ignored: their items are not in the tables",
    ]
    only_logged = load(data=data | {"events": {"positive": {"Take": None}}})
    assert only_logged.events.positive.sum() == 1
    assert [p.reason for p in only_logged.report.problems] == []  # the log has a positive event


def test_the_report_names_a_user_with_most_of_the_events(load, tmp_path):
    day = "2024-03-01T00:00"
    append_rows(tmp_path, *(("bot", f"i{n % 6}", "take", f"{day}:{n:02}Z") for n in range(60)))
    assert notes(load()) == [
        "the user 'bot' has 60 of 110 events (55%): if it is no person, leave its events out",
    ]


def test_the_report_names_events_without_order_history_or_choice(load, tmp_path):
    path = tmp_path / "data" / "events.csv"
    table = pl.read_csv(path)
    table.with_columns(pl.lit("2024-05-01T12:00:00Z").alias("timestamp")).unique().write_csv(path)
    assert any("the events of each user all have one time" in note for note in notes(load()))
    table.unique("user_id", keep="first").write_csv(path)
    assert notes(load()) == ["each user has one event only: no event has a history; check user_id"]
    table.with_columns(pl.lit("i3").alias("item_id")).write_csv(path)
    assert notes(load()) == ["all 50 events are of the item 'i3': check item_id"]


def test_the_report_counts_events_before_the_publication_of_their_item(load, tmp_path):
    items = tmp_path / "data" / "items.csv"
    table = pl.read_csv(items).with_columns(pl.lit("2030-01-01").alias("published_at"))
    table.write_csv(items)
    assert notes(load()) == ["50 events are older than the publication of their item: as targets they cannot be hit"]


def test_the_hash_depends_on_the_tables_only(load, tmp_path):
    first = load().hash
    assert len(first) == 16
    assert load(seed=1).hash == first  # the seed does not matter
    events = tmp_path / "data" / "events.csv"
    text = events.read_text()
    events.write_text(text.replace("u3,", "u4,", 1))
    changed = load().hash
    assert changed != first
    events.write_text(text)
    assert load().hash == first
    items = tmp_path / "data" / "items.csv"
    items.write_text(items.read_text().replace("Title 3", "Another title"))
    assert load().hash not in {first, changed}


def test_items_without_enough_events_before_the_cut_are_left_out(load):
    dataset = load()
    cut = int(np.median(dataset.events.times))
    names = dataset.catalog.ids.ids
    counts = {n: sum(1 for _, i, t in ids(dataset) if i == n and t < cut) for n in names}
    min_events = sorted(counts.values())[3]
    kept = keep_frequent(dataset, cut, min_events)
    assert set(kept.catalog.ids.ids) == {n for n, c in counts.items() if c >= min_events}
    assert set(ids(kept)) == {e for e in ids(dataset) if counts[e[1]] >= min_events}
    assert kept.left_out == len(dataset.events) - len(kept.events) > 0
    assert kept.fitted_until == max(t for _, _, t in ids(dataset) if t < cut)
    assert kept.catalog.frame["item_id"].to_list() == list(kept.catalog.ids.ids)


def test_without_an_encoder_items_have_no_vectors(load, tmp_path):
    config = load_config(toy_config(tmp_path), {})
    dataset = encode_contents(load(), config)
    assert not dataset.catalog.has_content.any()
    assert not dataset.catalog.content.any()
    assert not (tmp_path / "cache").exists()


def test_each_item_gets_the_vector_of_its_own_text(load, tmp_path):
    dataset = load(encoder={"kind": "builtin"})
    config = load_config(toy_config(tmp_path, encoder={"kind": "builtin"}), {})
    encoded = encode_contents(dataset, config)
    assert encoded.catalog.has_content.all()
    assert encoded.space is not None
    assert encoded.space.space == MiniLM.key  # of texts alone: the space of the text encoder
    assert encoded.content_note == "contents: text of 6"
    texts = [f"Title {n[1:]}. {'odd' if int(n[1:]) % 2 else 'even'}" for n in encoded.catalog.ids.ids]
    expected = MiniLM(Limits()).words(texts)
    np.testing.assert_allclose(encoded.catalog.content, expected, atol=1e-6)


def test_embedding_again_computes_only_changed_contents(load, tmp_path):
    load(encoder={"kind": "builtin"})
    config = load_config(toy_config(tmp_path, encoder={"kind": "builtin"}), {})

    def computed():
        report, _ = embed_catalog(config)
        return {encoder.encoder: encoder.computed for encoder in report.encoders}

    assert computed() == {"text": 6, "image": 0, "speech": 0, "sound": 0, "title": 6}
    assert computed() == {"text": 0, "image": 0, "speech": 0, "sound": 0, "title": 0}
    items = tmp_path / "data" / "items.csv"
    items.write_text(items.read_text().replace("Title 3", "Another title"))
    assert computed() == {"text": 1, "image": 0, "speech": 0, "sound": 0, "title": 1}


def test_embedding_without_an_encoder_is_refused(tmp_path, load):
    load()
    with pytest.raises(ConfigError, match="encoder is null"):
        embed_catalog(load_config(toy_config(tmp_path), {}))


def damage(folder, *texts):
    """Change each of the texts in the one segment of a folder; the places of their lines."""
    (segment,) = folder.glob("*.log")
    segment.chmod(0o600)
    data = segment.read_bytes()
    lines = data.splitlines(keepends=True)
    for text in texts:
        data = data.replace(text, text.swapcase())
    segment.write_bytes(data)
    starts = {text: sum(map(len, lines[:k])) for k, line in enumerate(lines) for text in texts if text in line}
    return [f"{folder.name}/{segment.name} byte {starts[text]:,}" for text in texts]


def test_damaged_lines_of_the_log_are_reported(load, logged, tmp_path):
    append_events(tmp_path, *((f"u{n}", "i2", START + n) for n in range(1, 8)))
    log = EventLog(tmp_path / "log")
    log.append_now([EventUndone(user_id="u1", event_id="nothing", timestamp=START)])
    log.close()
    assert load(**logged).report.problems == ()
    places = damage(tmp_path / "log" / "events", b'"u2"', b'"u4"', b'"u6"', b'"u7"')  # u7: no valid line after it
    damage(tmp_path / "log" / "corrections", b'"u1"')
    dataset = load(**logged)
    assert len(dataset.events) == 50 + 3
    (problem,) = dataset.report.problems
    assert (problem.table, problem.reason, problem.action) == ("event log", "damaged line", "rejected")
    assert (problem.count, problem.places) == (5, tuple(places[:3]))
    assert f"restore the segment from a backup of {tmp_path / 'log'}" in problem.advice
    status = {stream.stream: stream.damaged for stream in log_status(tmp_path / "log", check=True).streams}
    assert status == {"events": 4, "corrections": 1, "exposures": 0, "items": 0}


def test_the_end_of_a_segment_that_is_being_written_is_not_damaged(load, logged, tmp_path):
    log = EventLog(tmp_path / "log")
    log.append_now([Event(user_id="u1", item_id="i2", event="take", timestamp=START, event_id="e")])
    (segment,) = (tmp_path / "log" / "events").glob("*.log")
    with segment.open("ab") as file:
        file.write(b"0123 half a line")
    assert load(**logged).report.problems == ()
    log.close()


def test_records_of_a_later_version_are_reported_with_another_remedy(load, logged, tmp_path):
    payload = b'{"v":99,"kind":"event","user_id":"u1","item_id":"i2"}'
    segment = tmp_path / "log" / "events" / f"{1:020d}-7.log"
    segment.parent.mkdir(parents=True)
    segment.write_bytes(b"%08x %s\n" % (crc32(payload), payload))
    (problem,) = load(**logged).report.problems
    assert problem.line == (
        f"event log: record of a later version: 1 rejected (first events/{segment.name} byte 0; a newer version "
        "wrote it: install that version)"
    )
