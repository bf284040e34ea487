"""A warm start: rows of the extended catalogue, transferred weights, one step by hand, and the continued bundle."""

import copy
import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from toy_data import DAY, SMALL, START, Lines, toy_catalog, toy_config, toy_log, write_tables

from experiments.config import load_config
from experiments.dataset import load_dataset
from experiments.pipelines.train import train
from experiments.pipelines.warm_start import train_from
from experiments.tracking.mlflow import NullTracker
from features.errors import BundleError, ConfigError, DataError, SpaceError
from recsys.bundle.formats import fingerprint_of
from recsys.bundle.io import load_bundle, trained_events
from recsys.bundle.registry import current_bundle
from recsys.bundle.trained_events import event_keys, new_events
from recsys.config import TrainingConfig
from recsys.item_statistics import ItemStatistics
from recsys.towers.history import History
from recsys.towers.model import TwoTowers
from recsys.towers.training import fit_towers
from recsys.towers.warm_start import extend_catalog, transfer_weights


def test_old_items_keep_their_rows_new_ones_follow_and_removed_ones_are_unavailable():
    old = toy_catalog(4, categories=[["a"], ["b"], ["a", "c"], []])
    everything = toy_catalog(6, categories=[["a"], ["x"], ["a", "c"], [], ["y"], ["b"]])
    extended = extend_catalog(old, everything.take(np.array([5, 2, 0, 1])))  # i3 is removed, i5 is new
    assert extended.ids.ids == ("i0", "i1", "i2", "i3", "i5")
    assert extended.available.tolist() == [True, True, True, False, True]
    assert extended.frame.get_column("item_id").to_list() == list(extended.ids.ids)
    names = [[extended.category_names[c] for c in row if c >= 0] for row in extended.categories]
    assert names == [["a"], ["x"], ["a", "c"], [], ["b"]]  # the current categories
    assert extended.has_content.sum() == 0


def test_weights_are_transferred_by_rows_and_names_and_new_items_have_content_vectors():
    old = toy_catalog(3, categories=[["a"], ["c"], ["b"]])
    new = extend_catalog(old, toy_catalog(5, categories=[["a"], ["c"], ["d"], ["b"], ["d"]]))
    events = toy_log([(0, 0, 1), (0, 1, 2), (1, 3, 3)], n_items=5)
    torch.manual_seed(0)
    log = toy_log([(0, 0, 1), (0, 1, 2)], n_items=3)
    fitted = TwoTowers(old, ItemStatistics.of(log), SMALL)
    fitted.rotate(log, seed=0)
    before = copy.deepcopy(fitted.state_dict())
    towers = transfer_weights(fitted, old, new, events, SMALL)
    after = towers.state_dict()
    assert torch.equal(after["items.id.weight"][:3], before["items.id.weight"])
    assert not after["items.id.weight"][3:].any()
    assert (old.category_names, new.category_names) == (("a", "b", "c"), ("a", "b", "c", "d"))
    # row 0 is padding, which nothing reads
    assert torch.equal(after["items.category.weight"][1:4], before["items.category.weight"][1:])
    assert after["items.category.weight"][4].any()
    tables = {"items.id.weight", "items.category.weight"}
    assert all(torch.equal(after[name], before[name]) for name in set(before) - tables)
    assert towers.items.known.tolist() == [1, 1, 0, 1, 0]  # by all events
    with torch.inference_mode():  # a cold item has the vector of its content, whether it is new or old
        items = towers.items.eval()
        content = items.project(items.content) + items.number(items.numbers) + items.category(items.categories + 1)
        expected = functional.normalize(content, dim=-1) @ towers.rotation
        np.testing.assert_allclose(towers.item_vectors()[4], expected[4], atol=1e-6)
        assert not torch.equal(towers.rotation, torch.eye(SMALL.dimension))


@pytest.mark.parametrize(
    ("field", "value"), [("dimension", 16), ("id", False), ("content", False), ("times", False), ("calendar", True)]
)
def test_towers_of_another_shape_are_refused(field, value):
    old = toy_catalog(3)
    fitted = TwoTowers(old, ItemStatistics.of(toy_log([(0, 0, 1)], n_items=3)), SMALL)
    config, previous = SMALL.model_copy(update={field: value}), getattr(SMALL, field)
    with pytest.raises(ConfigError, match=rf"towers\.{field} is {value} and that of the bundle {previous}"):
        transfer_weights(fitted, old, old, toy_log([(0, 0, 1)], n_items=3), config)


def test_contents_of_another_dimension_are_refused():
    old = toy_catalog(3)
    fitted = TwoTowers(old, ItemStatistics.of(toy_log([(0, 0, 1)], n_items=3)), SMALL)
    with pytest.raises(ConfigError, match="contents have 5 dimensions and those of the bundle 1"):
        transfer_weights(fitted, old, toy_catalog(3, text=np.eye(3, 5)), toy_log([(0, 0, 1)], n_items=3), SMALL)


def test_one_epoch_equals_one_step_by_hand_on_the_new_events():
    """Histories include all events; only the positive ones among the new events are predicted."""
    rows = [(0, 0, 1), (0, 1, 2), (0, 2, 11), (0, 3, 12, False), (1, 4, 3), (1, 5, 13), (2, 1, 4), (2, 2, 5)]
    events, catalog = toy_log(rows), toy_catalog(6)
    targets = {0: (11, 2), 1: (13, 5)}  # user -> (time, item); user 2 has no new event
    torch.manual_seed(0)
    towers = TwoTowers(catalog, ItemStatistics.of(events), SMALL)
    expected = copy.deepcopy(towers)
    training = TrainingConfig(batch_events=100, learning_rate=0.01, weight_decay=0.1)

    hidden = []
    items = expected.train().items()
    for user, (as_of, _) in targets.items():
        state = events.states(np.array([user]), np.array([as_of]))
        past = History.newest(state, int(state.items.lengths[0])).on(items.device)
        hidden.append(expected.users(items[past.items], past)[0, -1])
    logits = torch.stack(hidden) @ items.T * expected.log_scale.exp()
    functional.cross_entropy(logits, torch.tensor([item for _, item in targets.values()])).backward()
    torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
    by_ndim: dict[int, list[torch.nn.Parameter]] = {0: [], 1: [], 2: []}
    for parameter in expected.parameters():
        by_ndim[min(parameter.ndim, 2)].append(parameter)
    torch.optim.AdamW(
        [
            {"params": by_ndim[2], "weight_decay": 0.1},
            {"params": by_ndim[1], "weight_decay": 0.0},
            {"params": by_ndim[0], "weight_decay": 0.0, "lr": 0.1},
        ],
        lr=0.01,
    ).step()

    fitted = fit_towers(catalog, events, SMALL, training, seed=0, epochs=1, start=towers, only=events.times > 10)
    assert fitted.fitted_until == 13
    after = fitted.model.state_dict()
    for name, parameter in expected.named_parameters():
        tensor = parameter.detach()
        if name.endswith("qkv.bias"):  # the bias of the keys cancels in the softmax: its gradient is rounding
            after[name][8:16] = tensor[8:16]
        np.testing.assert_allclose(after[name], tensor, atol=1e-5, err_msg=name)


def add_a_day(folder):
    """Change the tables to a day later: i3 is removed, i12 is new, and every user took i12, i0 and i12 again."""
    data = folder / "data"
    items, events = pl.read_csv(data / "items.csv"), pl.read_csv(data / "events.csv")
    new = pl.DataFrame({"item_id": ["i12"], "title": ["An aubergine"], "categories": ['["even"]']})
    pl.concat([items.filter(pl.col("item_id") != "i3"), new]).write_csv(data / "items.csv")
    last = pl.Series(events.get_column("timestamp")).str.to_datetime(time_zone="UTC").dt.epoch("us").max()
    assert isinstance(last, int)
    times = [last + DAY + hour * 3600 * 10**6 for hour in range(3)]
    rows = [
        (f"u{u}", item, "take", at) for u in range(40) for item, at in zip(["i12", "i0", "i12"], times, strict=True)
    ]
    frame = pl.DataFrame(rows, schema=events.columns, orient="row").with_columns(
        pl.col("timestamp").cast(pl.Datetime("us", "UTC")).dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
    )
    pl.concat([events, frame]).write_csv(data / "events.csv")


def config_of(folder, **sections):
    return load_config(toy_config(folder, **sections), {})


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """A bundle, and the one continued from it a day later: (folder, first, second, tables, printed lines)."""
    folder = tmp_path_factory.mktemp("warm")
    write_tables(folder / "data")
    encoder = {"encoder": {"kind": "builtin"}}
    first, _ = train(config_of(folder, **encoder), NullTracker(), Lines())
    add_a_day(folder)
    training = {"epochs": 2, "batch_events": 20, "learning_rate": 0.03}  # many steps
    lines = Lines()
    second, tables = train_from(config_of(folder, **encoder, training=training), first.name[:9], NullTracker(), lines)
    return folder, load_bundle(first), load_bundle(second), tables, lines.lines


def test_the_continued_bundle_is_current_and_names_the_previous_one(day):
    folder, first, second, _, lines = day
    assert current_bundle(folder / "bundles") == second.path
    assert second.manifest["from"] == first.fingerprint
    assert second.catalog.ids.ids == (*first.catalog.ids.ids, "i12")
    assert second.recommender.fitted_until == first.recommender.fitted_until + DAY + 2 * 3600 * 10**6
    assert any(
        line.startswith("120 events and 1 items are new since the bundle was trained; 0 of the") for line in lines
    )
    reranker = second.recommender.reranker
    assert reranker.booster.model_to_string() == first.recommender.reranker.booster.model_to_string()
    assert reranker.features.statistics.total[-1] == 80


def test_a_bundle_without_a_reranker_is_continued_without_one(tmp_path):
    write_tables(tmp_path / "data")
    first, _ = train(config_of(tmp_path, reranker=None), NullTracker(), Lines())
    add_a_day(tmp_path)
    lines = Lines()
    second, _ = train_from(config_of(tmp_path), "current", NullTracker(), lines)
    assert f"{first} has no reranker: the new bundle serves the order of the retrieval scores" in lines.lines
    assert load_bundle(second).recommender.reranker is None


def test_a_removed_item_keeps_its_row_and_is_unavailable(day):
    _, first, second, _, _ = day
    row = first.catalog.ids.row("i3")
    assert second.catalog.ids.row("i3") == row
    assert np.flatnonzero(~second.catalog.available).tolist() == [row]


def test_a_new_item_is_recommended_and_found(day):
    folder, _, second, _, _ = day
    dataset = load_dataset(config_of(folder))
    rows = second.catalog.ids.rows(dataset.catalog.ids.ids)
    events = toy_log(zip(dataset.events.users, rows[dataset.events.items], dataset.events.times, strict=True), 40, 13)
    states = events.states(
        np.arange(40), np.full(40, events.latest)
    )  # the last two items are i12 and i0: i12 is next
    found = second.recommender.recommend(states, 3, allow=second.catalog.available)
    assert (found.rows == second.catalog.ids.row("i12")).any(1).mean() > 0.9
    query = second.catalog.content[second.catalog.ids.row("i12")][None]
    assert second.search(query, 1).rows.tolist() == [[12]]
    assert second.content.channels["text"].present.all()
    assert second.content.space == day[1].content.space


def test_the_previous_bundle_is_evaluated_on_new_events_of_its_items(day):
    _, first, second, tables, lines = day
    assert "80 of the later events are of items that the bundle does not contain: not evaluated" in lines
    assert [table.placement for table in tables] == [
        "again"
    ]  # every user has seen i0: without repeats there is no target
    assert any(line.startswith("home: nothing to predict in [") for line in lines)
    facts = tables[0].to_dict()
    assert (facts["events"], facts["users"]) == (40, 40)
    assert f"bundle {first.fingerprint}, prequential" in facts["note"]
    assert second.manifest["metrics"] == [facts]
    assert facts["split_hashes"] == [second.manifest["split_hash"]]
    assert len(second.manifest["split_hash"]) == 16
    since = np.datetime64(first.recommender.fitted_until + 1, "us")
    assert facts["note"].startswith(
        f"bundle {first.fingerprint}, prequential: models see only events before {since} UTC"
    )
    assert [(row["name"], row["fit_seconds"]) for row in facts["rows"]] == [(facts["ours"], 0)]
    assert facts["ours"] == "two towers + reranker"


def test_a_bundle_is_given_by_its_folder_and_refused_without_new_events(day):
    folder, _, second, _, _ = day
    config = config_of(folder, encoder={"kind": "builtin"})
    with pytest.raises(DataError, match=r"no positive event is new to .*, which was fitted until 20.* UTC"):
        train_from(config, str(second.path), NullTracker(), Lines())
    with pytest.raises(BundleError, match="0 bundles begin with 'zz'"):
        train_from(config, "zz", NullTracker(), Lines())
    with pytest.raises(BundleError, match=r"bundles is a folder without manifest\.json: give one of a bundle, or"):
        train_from(config, str(folder / "bundles"), NullTracker(), Lines())
    assert current_bundle(folder / "bundles") == second.path


def add_events(folder, rows):
    """Append (user, item, µs after START) rows to the events table."""
    with (folder / "data" / "events.csv").open("a", encoding="utf-8") as file:
        for user, item, micros in rows:
            at = datetime.fromtimestamp((START + micros) / 10**6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            file.write(f"{user},{item},take,{at}\n")


LATE = [(f"m{n // 5}", f"i{n % 12}", n * 10**6) for n in range(50)]
"""Events of ten new users in the first minute of the tables."""


def test_late_events_are_learned_and_told(tmp_path):
    write_tables(tmp_path / "data")
    first, _ = train(config_of(tmp_path), NullTracker(), Lines())
    add_events(tmp_path, LATE)
    lines = Lines()
    second, tables = train_from(config_of(tmp_path), "current", NullTracker(), lines)
    assert any(
        line.startswith("50 events and 0 items are new since the bundle was trained; 50 of the")
        for line in lines.lines
    )
    assert "the previous bundle is not evaluated: no event is later than its latest one" in lines.lines
    assert tables == []  # the first bundle was fitted on later events: it must not be judged on these
    keys = [trained_events(load_bundle(path)) for path in (first, second)]
    assert [0 if k is None else len(k) for k in keys] == [520, 570]
    with pytest.raises(DataError, match="no positive event is new"):
        train_from(config_of(tmp_path), "current", NullTracker(), Lines())


def test_a_clock_that_is_ahead_hides_nothing(tmp_path):
    write_tables(tmp_path / "data")
    ahead = 40 * DAY  # later than every other event
    add_events(tmp_path, [("u5", "i6", ahead)])
    train(config_of(tmp_path), NullTracker(), Lines())
    add_events(tmp_path, [(f"u{n}", f"i{n}", 35 * DAY + n) for n in range(10)])
    lines = Lines()
    train_from(config_of(tmp_path), "current", NullTracker(), lines)
    assert any(
        line.startswith("10 events and 0 items are new since the bundle was trained; 10 of the")
        for line in lines.lines
    )


def test_a_table_in_another_order_has_no_new_events(tmp_path):
    write_tables(tmp_path / "data")
    train(config_of(tmp_path), NullTracker(), Lines())
    events = pl.read_csv(tmp_path / "data" / "events.csv")
    events.sample(fraction=1, shuffle=True, seed=1).write_csv(tmp_path / "data" / "events.csv")
    with pytest.raises(DataError, match="no positive event is new"):
        train_from(config_of(tmp_path), "current", NullTracker(), Lines())


def test_a_bundle_that_does_not_record_its_events_is_continued_by_time(tmp_path):
    write_tables(tmp_path / "data")
    path, _ = train(config_of(tmp_path), NullTracker(), Lines())
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8")) | {"format": 9}
    del manifest["files"]["trained_events.npy"], manifest["checksum"]
    manifest["fingerprint"] = fingerprint_of(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    add_events(tmp_path, [*LATE, ("u1", "i2", 40 * DAY)])
    lines = Lines()
    second, _ = train_from(config_of(tmp_path), str(path), NullTracker(), lines)
    assert any("does not record which events it was trained on" in line for line in lines.lines)
    assert any(line.startswith("1 events and 0 items are new") for line in lines.lines)
    keys = trained_events(load_bundle(second))
    assert keys is not None
    assert len(keys) == 571


ROW = st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5))


@given(st.lists(ROW, max_size=20), st.lists(ROW, max_size=20), st.randoms(use_true_random=False))
def test_new_events_are_those_that_were_not_trained_on(old, added, random):
    """Whatever the order of the events and the rows of users and items: `added`, and nothing else, is new."""
    users, items = [f"u{n}" for n in range(4)], [f"i{n}" for n in range(6)]
    trained = np.sort(event_keys(toy_log(old), users, items))
    rows = [*old, *added]
    random.shuffle(rows)
    order = random.sample(range(4), 4)  # other rows of the same users
    log = toy_log([(order.index(user), item, time) for user, item, time in rows])
    new = new_events(event_keys(log, [users[n] for n in order], items), trained)
    got = Counter(zip([order[u] for u in log.users[new]], log.items[new], log.times[new], strict=True))
    assert got == Counter(added)


def test_keys_of_events_stay_the_same():
    """Bundles store them: another function would make every event new."""
    log = toy_log([(0, 1, 1_700_000_000_000_000), (1, 0, -5)])
    typed = replace(log, types=np.array([1, 0]), n_types=2)
    keys = [event_keys(events, ["ann", "b\u00f6b"], ["x", ""]).tolist() for events in (log, typed)]
    assert keys == [[18137023854826945842, 9285373132838249723], [14071924060348639062, 8356135070969303508]]
    assert len({key for pair in keys for key in pair}) == 4


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"encoder": None}, SpaceError, "encoder is null, and the contents of"),
        ({"split": {"kind": "leave-last-out"}}, ConfigError, "split by time"),
        ({"towers": SMALL.model_copy(update={"layers": 2}).model_dump()}, ConfigError, "towers.layers is 2 and"),
    ],
)
def test_a_configuration_that_does_not_fit_the_bundle_is_refused(day, sections, error, message):
    folder, first, _, _, _ = day
    with pytest.raises(error, match=message):
        train_from(
            config_of(folder, **{"encoder": {"kind": "builtin"}, **sections}),
            first.fingerprint,
            NullTracker(),
            Lines(),
        )


def test_other_event_types_are_refused(day):
    folder, first, _, _, _ = day
    events = {"positive": {"take": None}, "seen": ["take", "look"]}
    config = config_of(folder, data={"source": "folder", "path": str(folder / "data"), "events": events})
    with pytest.raises(ConfigError, match=r"the event types look, take, and that of .* none: set it back"):
        train_from(config, first.fingerprint, NullTracker(), Lines())


def test_a_bundle_of_other_data_is_refused(day, tmp_path):
    _, first, _, _, _ = day
    with pytest.raises(ConfigError, match=f"of folder in {tmp_path}/data, and .* of folder in {first.data.path}"):
        train_from(config_of(tmp_path), str(first.path), NullTracker(), Lines())
