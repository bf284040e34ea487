"""The snapshot that a request works with: rows, masks given to the models, pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_harness import service_harness
from toy_service import NOW, RULES, Nearest, ToyBundle, ToyShelf, toy_bundle, with_contents

from features.arrays import Bools
from features.interactions import UserStates
from features.log.records import Event
from features.store.memory import MemoryStore
from features.store.user_state import UserState
from recsys.interfaces import Candidates
from recsys.retrieval.filters import Filter
from serving.errors import ApiError
from serving.routes.items.media import MAX_IMAGE_BYTES, media_file
from serving.state.snapshot import ServingSnapshot


def snapshot_of(bundle: ToyBundle) -> ServingSnapshot:
    return ServingSnapshot.of(bundle, MemoryStore(RULES), lambda: NOW)


def clicked(*items: str, kinds: Sequence[str] = ()) -> UserState:
    """A user who clicked items, one microsecond apart, the last at 1,000 µs. kinds: other events than clicks."""
    named = zip(items, kinds or ["click"] * len(items), strict=True)
    first = 1_001 - len(items)
    return UserState.of(
        [Event(user_id="u", item_id=i, event=kind, timestamp=first + n) for n, (i, kind) in enumerate(named)], RULES
    )


# --- rows


def test_the_item_of_the_first_row_counts_as_any_other(tmp_path: Path) -> None:
    with service_harness(tmp_path) as harness:
        harness.click("eve", "i0")
        response = harness.get("eve", 100)
        assert response["source"] == "model"
        assert [item["item_id"] for item in response["items"]][:3] == ["i1", "i2", "i4"]  # nearest to i0, without it
        assert "i0" not in [item["item_id"] for item in response["items"]]
        near = harness.client.get("/v1/items/i0/similar?limit=2").json()["items"]
        assert [item["item_id"] for item in near] == ["i1", "i2"]


def test_rows_of_known_ids_only(tmp_path: Path) -> None:
    snapshot = snapshot_of(toy_bundle(tmp_path))
    assert snapshot.rows(["i0", "gone", "i2"]).tolist() == [0, 2]
    assert snapshot.states([clicked("i0", "gone", "i2")], NOW).items.flat.tolist() == [0, 2]


def test_a_hidden_item_is_the_named_one_and_no_other(tmp_path: Path) -> None:
    snapshot = snapshot_of(toy_bundle(tmp_path))
    snapshot.hide("gone")
    assert np.flatnonzero(~snapshot.allowed()).tolist() == [3]
    snapshot.hide("i0")
    assert np.flatnonzero(~snapshot.allowed()).tolist() == [0, 3]


# --- time of a state


def test_a_state_is_read_after_its_latest_event(tmp_path: Path) -> None:
    snapshot = snapshot_of(toy_bundle(tmp_path))
    for now, as_of in ((999, 1_001), (1_000, 1_001), (1_001, 1_001), (5_000, 5_000)):
        assert snapshot.states([clicked("i1", "i2")], now).as_of.tolist() == [as_of]
    assert snapshot.states([UserState()], 7).as_of.tolist() == [7]


def test_without_rules_of_seen_events_every_event_is_seen(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path)
    data = bundle.data.model_copy(update={"events": RULES.model_copy(update={"seen": None})})
    for each, seen in ((bundle, [False, True]), (replace(bundle, data=data), [True, True])):
        state = clicked("i1", "i2", kinds=("look", "click"))
        assert snapshot_of(each).states([state], NOW).seen.tolist() == seen


# --- masks that the models are given


@dataclass(frozen=True)
class Recording(ToyBundle):
    """A toy bundle that keeps the masks and exclusions it is given."""

    given: list[tuple[str, Any, Any]] = field(default_factory=list)

    def similar(self, rows: Any, k: int, *, allow: Any = None, exclude: Any = None) -> Candidates:
        self.given.append(("similar", allow, exclude))
        return super().similar(rows, k, allow=allow, exclude=exclude)

    def search(self, content: Any, k: int, *, allow: Any = None) -> Candidates:
        self.given.append(("search", allow, None))
        return super().search(content, k, allow=allow)

    def search_for(self, content: Any, states: Any, k: int, *, weight: float, allow: Any = None) -> Candidates:
        self.given.append((f"search for a user by {weight}", allow, None))
        return super().search_for(content, states, k, weight=weight, allow=allow)


@dataclass(frozen=True)
class RecordingModel(Nearest):
    given: list[tuple[str, Any, Any]] = field(default_factory=list)

    def recommend(self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Any = None) -> Candidates:
        self.given.append(("recommend", allow, exclude))
        return super().recommend(states, k, allow=allow, exclude=exclude)


def recording(folder: Path) -> Recording:
    plain = with_contents(toy_bundle(folder))
    bundle = Recording(**{name: getattr(plain, name) for name in plain.__dataclass_fields__})
    return replace(bundle, recommender=RecordingModel(len(plain.catalog), given=bundle.given))


def test_the_models_are_given_the_allowed_items(tmp_path: Path) -> None:
    bundle = recording(tmp_path)
    snapshot = snapshot_of(bundle).with_filter(Filter(exclude=("i2", "i7")))
    allowed = [0, 1, 4, 5, 6, 8, 9, 10, 11]  # 3 is not available
    states = snapshot.states([clicked("i10")], NOW)
    query = np.array([[1, 0, 0]], np.float32)
    snapshot.recommend(states, np.array([10]), 2, {})
    none = np.zeros(0, np.int64)
    snapshot.similar(5, 2, {}, np.array([4, 5]))
    snapshot.search(query, 2, {}, none)
    snapshot.search(query, 2, {}, none, states, 0.25)
    assert [name for name, _, _ in bundle.given] == ["recommend", "similar", "search", "search for a user by 0.25"]
    with_content = [row for row in allowed if row != 9]  # 9 has no content vector
    for (_, allow, _), rows in zip(bundle.given, (allowed, allowed, with_content, with_content), strict=True):
        assert np.flatnonzero(allow).tolist() == rows
    assert bundle.given[0][2].pairs()[1].tolist() == [10]
    assert bundle.given[1][2].pairs()[1].tolist() == [4, 5]  # the item and its variant


def test_scores_of_popular_items_fall_by_their_rank(tmp_path: Path) -> None:
    slate = snapshot_of(toy_bundle(tmp_path)).popular(np.array([0]), 3, {}).slate
    assert slate.items == ("i1", "i2", "i4")
    assert slate.scores.tolist() == pytest.approx([1 - 1 / 12, 1 - 2 / 12, 1 - 4 / 12])


def test_a_bundle_without_popular_items_has_an_empty_slate(tmp_path: Path) -> None:
    bundle = replace(toy_bundle(tmp_path), popular=np.zeros(0, np.int64))
    assert snapshot_of(bundle).popular(np.zeros(0, np.int64), 3, {}).slate.items == ()


# --- pictures


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBP", "image/webp"),
        (b"\x00\x00\x00\x20ftypavif", "image/avif"),
        (b"RIFF\x00\x00\x00\x00WAVE", None),
        (b"OggS\x00\x00\x00\x00WEBP", None),
        (b"\x00\x00\x00\x20ftypmp42", None),
        (b"GIF88a", None),
        (b"\xff\xd8", None),
        (b"<svg>", None),
        (b"", None),
    ],
)
def test_a_picture_is_told_by_its_first_bytes(tmp_path: Path, head: bytes, kind: str | None) -> None:
    content = head + bytes(20) if head else head
    (tmp_path / "a.png").write_bytes(content)
    snapshot = snapshot_of(toy_bundle(tmp_path, images={0: "a.png"}))
    if kind is None:
        with pytest.raises(ApiError) as error:
            media_file(snapshot.bundle, "i0", "image")
        assert (error.value.status, error.value.code) == (404, "no_picture")
    else:
        assert media_file(snapshot.bundle, "i0", "image") == (tmp_path / "a.png", kind)


@pytest.mark.parametrize("image", ["a\0b.png", "\0", "", None, "a" * 5_000, "folder", "ftp://host/a.png"])
def test_an_image_that_is_no_file_is_not_found(tmp_path: Path, image: str | None) -> None:
    (tmp_path / "folder").mkdir()
    images = {} if image is None else {0: image}
    with service_harness(tmp_path, shelf=ToyShelf(toy_bundle(tmp_path, images=images))) as harness:
        response = harness.client.get("/media/i0")
    assert (response.status_code, response.json()["code"]) == (404, "no_picture")


def test_the_largest_picture_that_is_served(tmp_path: Path) -> None:
    snapshot = snapshot_of(toy_bundle(tmp_path, images={0: "a.png"}))
    for size, served in ((MAX_IMAGE_BYTES, True), (MAX_IMAGE_BYTES + 1, False)):
        with (tmp_path / "a.png").open("wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n")
            file.truncate(size)
        if served:
            assert media_file(snapshot.bundle, "i0", "image")[0].stat().st_size == size
        else:
            with pytest.raises(ApiError):
                media_file(snapshot.bundle, "i0", "image")
