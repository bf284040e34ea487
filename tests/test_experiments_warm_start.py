"""A warm start: rows that stay, weights by name, one step by hand, and a bundle that goes on over what is new."""

import copy

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional
from toy_data import DAY, SMALL, Lines, toy_catalog, toy_config, toy_log, write_tables

from experiments.config import load_config
from experiments.dataset import load_dataset
from experiments.pipelines.train import train
from experiments.pipelines.warm_start import train_from
from experiments.tracking.mlflow import NullTracker
from features.errors import BundleError, ConfigError, DataError, SpaceError
from recsys.bundle.io import load_bundle
from recsys.bundle.registry import current_bundle
from recsys.config import TrainingConfig
from recsys.item_statistics import ItemStatistics
from recsys.towers.history import History
from recsys.towers.model import TwoTowers
from recsys.towers.training import fit_towers
from recsys.towers.warm_start import extend_catalog, transfer_weights


def test_old_items_keep_their_rows_new_ones_come_after_and_what_is_gone_is_not_available():
    old = toy_catalog(4, categories=[["a"], ["b"], ["a", "c"], []])
    everything = toy_catalog(6, categories=[["a"], ["x"], ["a", "c"], [], ["y"], ["b"]])
    both = extend_catalog(old, everything.take(np.array([5, 2, 0, 1])))  # i3 is gone, i5 is new
    assert both.ids.ids == ("i0", "i1", "i2", "i3", "i5")
    assert both.available.tolist() == [True, True, True, False, True]
    assert both.frame.get_column("item_id").to_list() == list(both.ids.ids)
    names = [[both.category_names[c] for c in row if c >= 0] for row in both.categories]
    assert names == [["a"], ["x"], ["a", "c"], [], ["b"]]  # as the tables have them now
    assert both.has_content.sum() == 0


def test_weights_go_by_rows_and_names_and_new_items_stand_where_untouched_ones_do():
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
    assert torch.equal(after["items.category.weight"][:4], before["items.category.weight"])
    assert after["items.category.weight"][4].any()
    tables = {"items.id.weight", "items.category.weight"}
    assert all(torch.equal(after[name], before[name]) for name in set(before) - tables)
    assert towers.items.known.tolist() == [1, 1, 0, 1, 0]  # of all events
    with torch.inference_mode():  # a new item without events is what its contents say, as an old one is
        items = towers.items.eval()
        content = items.project(items.content) + items.number(items.numbers) + items.category(items.categories + 1)
        told = functional.normalize(content, dim=-1) @ towers.rotation
        np.testing.assert_allclose(towers.item_vectors()[4], told[4], atol=1e-6)
        assert not torch.equal(towers.rotation, torch.eye(SMALL.dimension))


@pytest.mark.parametrize(
    ("field", "mine"), [("dimension", 16), ("id", False), ("content", False), ("times", False), ("calendar", True)]
)
def test_towers_of_another_shape_are_refused(field, mine):
    old = toy_catalog(3)
    fitted = TwoTowers(old, ItemStatistics.of(toy_log([(0, 0, 1)], n_items=3)), SMALL)
    other, its = SMALL.model_copy(update={field: mine}), getattr(SMALL, field)
    with pytest.raises(ConfigError, match=rf"towers\.{field} is {mine} and that of the bundle {its}"):
        transfer_weights(fitted, old, old, toy_log([(0, 0, 1)], n_items=3), other)


def test_contents_of_another_width_are_refused():
    old = toy_catalog(3)
    fitted = TwoTowers(old, ItemStatistics.of(toy_log([(0, 0, 1)], n_items=3)), SMALL)
    with pytest.raises(ConfigError, match="contents have 5 dimensions and those of the bundle 1"):
        transfer_weights(fitted, old, toy_catalog(3, text=np.eye(3, 5)), toy_log([(0, 0, 1)], n_items=3), SMALL)


def test_one_pass_is_one_step_by_hand_over_what_is_new():
    """Histories reach back before `since`; only what is positive after it is predicted."""
    rows = [(0, 0, 1), (0, 1, 2), (0, 2, 11), (0, 3, 12, False), (1, 4, 3), (1, 5, 13), (2, 1, 4), (2, 2, 5)]
    events, catalog = toy_log(rows), toy_catalog(6)
    asked = {0: (11, 2), 1: (13, 5)}  # user -> when, what; user 2 has nothing new
    torch.manual_seed(0)
    towers = TwoTowers(catalog, ItemStatistics.of(events), SMALL)
    expected = copy.deepcopy(towers)
    training = TrainingConfig(batch_events=100, learning_rate=0.01, weight_decay=0.1)

    hidden = []
    items = expected.train().items()
    for user, (when, _) in asked.items():
        state = events.states(np.array([user]), np.array([when]))
        past = History.newest(state, int(state.items.lengths[0])).on(items.device)
        hidden.append(expected.users(items[past.items], past)[0, -1])
    logits = torch.stack(hidden) @ items.T * expected.log_scale.exp()
    functional.cross_entropy(logits, torch.tensor([item for _, item in asked.values()])).backward()
    torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
    of = {0: [], 1: [], 2: []}
    for parameter in expected.parameters():
        of[min(parameter.ndim, 2)].append(parameter)
    torch.optim.AdamW(
        [
            {"params": of[2], "weight_decay": 0.1},
            {"params": of[1], "weight_decay": 0.0},
            {"params": of[0], "weight_decay": 0.0, "lr": 0.1},
        ],
        lr=0.01,
    ).step()

    done = fit_towers(catalog, events, SMALL, training, seed=0, epochs=1, start=towers, since=10)
    assert done.fitted_until == 13
    after = done.model.state_dict()
    for name, parameter in expected.named_parameters():
        tensor = parameter.detach()
        if name.endswith("qkv.bias"):  # that of the keys has no say: its gradient is rounding
            after[name][8:16] = tensor[8:16]
        np.testing.assert_allclose(after[name], tensor, atol=1e-5, err_msg=name)


def grown(folder):
    """A day later: i3 is no longer in the tables, i12 is, and everyone took it, i0 and then it again."""
    data = folder / "data"
    items, events = pl.read_csv(data / "items.csv"), pl.read_csv(data / "events.csv")
    new = pl.DataFrame({"item_id": ["i12"], "title": ["An aubergine"], "categories": ['["even"]']})
    pl.concat([items.filter(pl.col("item_id") != "i3"), new]).write_csv(data / "items.csv")
    last = pl.Series(events.get_column("timestamp")).str.to_datetime(time_zone="UTC").dt.epoch("us").max()
    times = [last + DAY + hour * 3600 * 10**6 for hour in range(3)]
    more = [
        (f"u{u}", item, "take", at) for u in range(40) for item, at in zip(["i12", "i0", "i12"], times, strict=True)
    ]
    frame = pl.DataFrame(more, schema=events.columns, orient="row").with_columns(
        pl.col("timestamp").cast(pl.Datetime("us", "UTC")).dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
    )
    pl.concat([events, frame]).write_csv(data / "events.csv")


def config_of(folder, **sections):
    return load_config(toy_config(folder, **sections), {})


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """A bundle, and the one that went on from it a day later: (folder, first, second, tables, lines)."""
    folder = tmp_path_factory.mktemp("warm")
    write_tables(folder / "data")
    words = {"encoder": {"kind": "builtin"}}
    first, _ = train(config_of(folder, **words), NullTracker(), Lines())
    grown(folder)
    training = {"epochs": 2, "batch_events": 20, "learning_rate": 0.03}  # many steps
    lines = Lines()
    second, tables = train_from(config_of(folder, **words, training=training), first.name[:9], NullTracker(), lines)
    return folder, load_bundle(first), load_bundle(second), tables, lines.said


def test_the_bundle_that_went_on_is_served_and_says_from_where(day):
    folder, first, second, _, said = day
    assert current_bundle(folder / "bundles") == second.path
    assert second.manifest["from"] == first.fingerprint
    assert second.catalog.ids.ids == (*first.catalog.ids.ids, "i12")
    assert second.recommender.fitted_until == first.recommender.fitted_until + DAY + 2 * 3600 * 10**6
    assert any(line.startswith("120 events and 1 items since ") for line in said)
    order = second.recommender.reranker
    assert order.booster.model_to_string() == first.recommender.reranker.booster.model_to_string()
    assert order.features.statistics.total[-1] == 80


def test_a_bundle_without_an_order_goes_on_without_one_and_says_so(tmp_path):
    write_tables(tmp_path / "data")
    first, _ = train(config_of(tmp_path, reranker=None), NullTracker(), Lines())
    grown(tmp_path)
    lines = Lines()
    second, _ = train_from(config_of(tmp_path), "current", NullTracker(), lines)
    assert f"{first} has no reranker to go on with: what is published is retrieval alone" in lines.said
    assert load_bundle(second).recommender.reranker is None


def test_what_is_gone_keeps_its_place_and_is_not_recommended(day):
    _, first, second, _, _ = day
    row = first.catalog.ids.row("i3")
    assert second.catalog.ids.row("i3") == row
    assert np.flatnonzero(~second.catalog.available).tolist() == [row]


def test_a_new_item_is_recommended_and_found(day):
    folder, _, second, _, _ = day
    dataset = load_dataset(config_of(folder))
    rows = second.catalog.ids.rows(dataset.catalog.ids.ids)
    events = toy_log(zip(dataset.events.users, rows[dataset.events.items], dataset.events.times, strict=True), 40, 13)
    states = events.states(np.arange(40), np.full(40, events.latest))  # i12 and i0 were the last, it follows
    found = second.recommender.recommend(states, 3, allow=second.catalog.available)
    assert (found.rows == second.catalog.ids.row("i12")).any(1).mean() > 0.9
    asked = second.catalog.content[second.catalog.ids.row("i12")][None]
    assert second.search(asked, 1).rows.tolist() == [[12]]
    assert second.content.channels["text"].present.all()
    assert second.content.space == day[1].content.space


def test_the_bundle_before_is_judged_on_what_it_had_not_seen_and_knows(day):
    _, first, second, tables, said = day
    assert "80 of the new events are of items that the bundle does not know: not judged" in said
    assert [table.placement for table in tables] == ["again"]  # everyone has seen i0: nothing new to discover
    assert any(line.startswith("home: nothing to predict in [") for line in said)
    facts = tables[0].to_dict()
    assert (facts["events"], facts["users"]) == (40, 40)
    assert f"bundle {first.fingerprint}, prequential" in facts["note"]
    assert second.manifest["metrics"] == [facts]


def test_a_bundle_is_also_named_by_its_folder_and_refused_without_anything_new(day):
    folder, _, second, _, _ = day
    config = config_of(folder, encoder={"kind": "builtin"})
    with pytest.raises(DataError, match=r"no positive events since 20.* UTC, until when .* was fitted"):
        train_from(config, str(second.path), NullTracker(), Lines())
    with pytest.raises(BundleError, match="0 bundles begin with 'zz'"):
        train_from(config, "zz", NullTracker(), Lines())
    assert current_bundle(folder / "bundles") == second.path


@pytest.mark.parametrize(
    ("sections", "error", "told"),
    [
        ({"encoder": None}, SpaceError, "encoder is null, and the contents of"),
        ({"split": {"kind": "leave-last-out"}}, ConfigError, "split by time"),
        ({"towers": SMALL.model_copy(update={"layers": 2}).model_dump()}, ConfigError, "towers.layers is 2 and"),
    ],
)
def test_what_does_not_go_with_the_bundle_is_refused(day, sections, error, told):
    folder, first, _, _, _ = day
    with pytest.raises(error, match=told):
        train_from(
            config_of(folder, **{"encoder": {"kind": "builtin"}, **sections}),
            first.fingerprint,
            NullTracker(),
            Lines(),
        )


def test_other_types_of_events_are_refused(day):
    folder, first, _, _, _ = day
    events = {"positive": {"take": None}, "seen": ["take", "look"]}
    config = config_of(folder, data={"source": "folder", "path": str(folder / "data"), "events": events})
    with pytest.raises(ConfigError, match=r"data.events names look, take, and that of .* none: set it back"):
        train_from(config, first.fingerprint, NullTracker(), Lines())


def test_a_bundle_of_other_data_is_refused(day, tmp_path):
    _, first, _, _, _ = day
    with pytest.raises(ConfigError, match=f"of folder in {tmp_path}/data, and .* of folder in {first.data.path}"):
        train_from(config_of(tmp_path), str(first.path), NullTracker(), Lines())
