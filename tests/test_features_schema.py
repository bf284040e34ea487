"""The data contract: its columns and bounds, misspelled event types, names of placements; files put at once."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from test_features_catalog import catalog

from features import schema
from features.errors import FileError
from features.files import check_writable, put_file, put_new_file
from features.schema import DataConfig, EventRules, _one_slip, _swapped

DATA = {"source": "folder", "path": "p", "events": {"positive": {"view": None}}}


def test_the_columns_and_bounds_of_the_contract() -> None:
    assert (
        *("user_id", "item_id", "event", "timestamp", "value", "event_id", "request_id", "position", "propensity"),
        *("title", "description", "categories", "price", "image", "audio", "video", "published_at", "available"),
        "group_id",
    ) == schema.CONTRACT
    assert (schema.MAX_ID_BYTES, schema.MIN_POSITION, schema.MAX_POSITION) == (512, 1, 10_000)
    assert (schema.MIN_WEIGHT, schema.MAX_WEIGHT, schema.MAX_PRICE) == (1e-9, 1e6, 1e12)
    for weight, valid in ((1e-9, True), (0.9e-9, False), (1e6, True), (1.1e6, False)):
        rules = {"positive": {"view": None}, "weights": {"view": weight}}
        if valid:
            assert EventRules.model_validate(rules).weights == {"view": weight}
        else:
            with pytest.raises(ValidationError):
                EventRules.model_validate(rules)


@pytest.mark.parametrize(
    ("a", "b", "swapped"),
    [
        ("view", "veiw", True),
        ("view", "ivew", True),
        ("view", "viwe", True),
        ("view", "view", False),
        ("view", "wiev", False),  # not neighbours
        ("view", "vie", False),
        ("buy", "byu", False),  # too short
        ("viewed", "veiwde", False),  # two pairs
    ],
)
def test_two_neighbours_that_are_swapped(a: str, b: str, swapped: bool) -> None:
    assert _swapped(a, b) == _swapped(b, a) == swapped


@pytest.mark.parametrize(
    ("a", "b", "slip"),
    [
        ("views", "view", True),
        ("vews", "views", True),
        ("viaw", "view", True),
        ("viewx", "view", True),
        ("xview", "view", True),
        ("viaww", "view", False),
        ("vie", "view", False),  # too short
        ("view1", "view2", False),
        ("view", "view2", False),
        ("view1", "view", False),
        ("hover", "view", False),
    ],
)
def test_one_letter_that_slipped(a: str, b: str, slip: bool) -> None:
    assert _one_slip(a, b) == _one_slip(b, a) == slip


def test_views_that_no_rule_names_are_ignored() -> None:
    unnamed, seen, positive = (
        EventRules(positive={"buy": None}),
        EventRules(positive={"buy": None}, seen=("view",)),
        EventRules(positive={"view": None}),
    )
    assert [rules.ignores("view") for rules in (unnamed, seen, positive)] == [True, False, False]
    assert not any(unnamed.ignores(name) for name in ("buy", "View", "views", "hover"))
    # a view is a known type: what misspells it is no other type
    assert [unnamed.misspelled(name) for name in ("view", "View", " view", "veiw", "viaw")] == [
        *(None, "view", "view", "view", None)
    ]
    assert [unnamed.meant(name) for name in ("view", "views", "hover")] == [None, "view", None]
    assert EventRules(positive={"View": None}).misspelled("view") == "View"


def test_misspelled_and_meant_types() -> None:
    rules = EventRules(positive={"add_to_cart": None, "buy": None}, seen=("view",))
    assert rules.named == ("add_to_cart", "buy", "view")
    assert [rules.misspelled(name) for name in ("view", "View", "veiw", "viaw", "", "-")] == [
        *(None, "view", "view", None, None, None)
    ]
    assert [rules.meant(name) for name in ("view", "viaw", "AddToCart", "add_to_card", "bay")] == [
        *(None, "view", "add_to_cart", "add_to_cart", None)
    ]
    with pytest.raises(ValidationError, match="weights of a, b: only types named in `positive` are learned from"):
        EventRules(positive={"buy": None}, weights={"b": 1, "a": 1, "buy": 1})


@pytest.mark.parametrize("name", ["x", "a b", "é", "x" * 100])
def test_names_of_placements(name: str) -> None:
    assert list(DataConfig.model_validate(DATA | {"placements": {name: {}}}).placements) == [name]


@pytest.mark.parametrize(
    ("name", "shown"), [("", "''"), (" ", "' '"), ("a\n", r"'a\\n'"), ("é" * 101, r"'(\\xe9){100}'")]
)
def test_names_of_placements_that_are_refused(name: str, shown: str) -> None:
    message = f"the name of a placement has 1 to 100 characters, none of them a control character: {shown}"
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate(DATA | {"placements": {name: {}}})


# --- the catalogue


def test_items_of_unknown_time_are_published_at_any_time() -> None:
    items = catalog("c", "a", "b")  # -1 s, 1 s, unknown
    assert items.dated.tolist() == [True, True, False]
    moments = {-1_000_001: [False, False], -1_000_000: [True, False], 999_999: [True, False], 1_000_000: [True, True]}
    for moment, dated in moments.items():
        assert items.published_by(moment).tolist() == [*dated, True]


def test_rows_that_are_taken() -> None:
    items = catalog("c", "a", "b")
    taken = items.take(np.array([2, 0]))
    assert taken.ids.ids == ("b", "c")
    assert taken.frame["item_id"].to_list() == ["b", "c"]
    assert taken.category_names == items.category_names
    for name in ("categories", "price", "available", "published", "content", "has_content"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(items, name)[[2, 0]])


# --- files


def test_a_file_is_put_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    put_file(file, lambda part: part.write_text("first"))
    put_file(file, lambda part: part.write_text("second"))
    assert file.read_text() == "second"

    def fails(part: Path) -> None:
        assert part.parent == tmp_path
        assert part.name.startswith(f".writing-{os.getpid()}-")
        assert part.name.endswith("-a.txt")
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        put_file(file, fails)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "second"}
    with pytest.raises(OSError, match="not a regular file: move it, or choose another path"):
        put_file(Path("/dev/null"), fails)


def test_of_new_files_the_first_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    for text in ("first", "second"):
        put_new_file(file, lambda part, text=text: part.write_text(text))  # type: ignore[misc]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "first"}


def test_a_folder_is_tried_by_4096_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr("features.files.os.fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    folder = tmp_path / "a" / "b"
    check_writable(folder, "the folder")
    assert stat.S_ISDIR(folder.stat().st_mode)
    assert list(folder.iterdir()) == []
    assert sizes == [4096]
    (tmp_path / "file").touch()
    with pytest.raises(FileError) as caught:
        check_writable(tmp_path / "file" / "x", "the folder")
    assert str(caught.value) == (
        f"the folder cannot be written: {tmp_path}/file/x: Not a directory; a file stands where a folder is needed: "
        "move it, or choose another path"
    )
