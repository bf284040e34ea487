"""What one request works with: a loaded bundle, the store, and the arrays made of them once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from features.arrays import Bools, Floats, Ints
from features.catalog import Catalog
from features.interactions import Ragged, UserStates, now_micros
from features.schema import CATEGORIES, IMAGE, TITLE, DataConfig
from features.store.base import FeatureStore, UserState
from recsys.content.content_space import ContentSpace
from recsys.interfaces import Candidates, Recommender
from recsys.ranking.slate import Slate, item_groups, make_slate
from recsys.retrieval.filters import Filter
from serving.errors import ApiError
from serving.schemas import media_url

MAX_IMAGE_BYTES = 16 << 20


class ServableBundle(Protocol):
    """What the service needs of a bundle; `recsys.bundle.model.Bundle` is one."""

    @property
    def fingerprint(self) -> str:
        """Names the bundle in answers and in the log."""
        ...

    @property
    def manifest(self) -> Mapping[str, Any]:
        """How it was made."""
        ...

    @property
    def content(self) -> ContentSpace | None:
        """Where the items' contents lie; None where they have none."""
        ...

    @property
    def catalog(self) -> Catalog:
        """Its items."""
        ...

    @property
    def data(self) -> DataConfig:
        """What the events mean, and which placements there are."""
        ...

    @property
    def recommender(self) -> Recommender:
        """The whole path: user tower, index, reranker."""
        ...

    @property
    def popular(self) -> Ints:
        """(n,) int64 rows, the most popular first."""
        ...

    @property
    def note(self) -> str:
        """What of it works otherwise than it was asked to, "" where nothing does."""
        ...

    def similar(self, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None) -> Candidates:
        """The items nearest to each of rows (b,)."""
        ...

    def search(self, content: Floats, k: int, *, allow: Bools | None = None) -> Candidates:
        """The items nearest to each of some contents (b, D) of the bundle's space."""
        ...

    def search_for(
        self, content: Floats, who: UserStates, k: int, *, weight: float, allow: Bools | None = None
    ) -> Candidates:
        """The items nearest to each of some contents (b, D) and to who asks (b states), who counts by `weight`."""
        ...


@dataclass(frozen=True)
class ServingSnapshot:
    """Never changed, but for what is hidden: a new bundle is a new snapshot, put in its place in one assignment.

    available (n,) bool: items that may be shown, the one array that changes under requests, from True to False only;
    now: tells the time (µs); upcoming: rows of the items that were not published yet when this was made;
    filter_mask (n,): those that one request's filter lets through, None without a filter.
    """

    bundle: ServableBundle
    store: FeatureStore
    groups: Ints
    cards: tuple[dict[str, Any], ...]
    available: Bools
    now: Callable[[], int]
    upcoming: Ints
    filter_mask: Bools | None = None

    @classmethod
    def of(
        cls, bundle: ServableBundle, store: FeatureStore, now: Callable[[], int] = now_micros
    ) -> "ServingSnapshot":
        """With the cards (item_id, title, categories, image) of all items made ready."""
        catalog = bundle.catalog
        cards = tuple(_cards(catalog.ids.ids, catalog.frame))
        available, upcoming = catalog.available.copy(), np.flatnonzero(~catalog.published_by(now()))
        return cls(bundle, store, item_groups(catalog), cards, available, now, upcoming)

    def with_upserts(self, bundle: ServableBundle, items: Sequence[str]) -> "ServingSnapshot":
        """With a bundle that has grown by these items, or has them anew; what is hidden here is not hidden there."""
        catalog, rows = bundle.catalog, bundle.catalog.ids.rows(items)
        cards = [*self.cards, *[{}] * (len(catalog) - len(self.cards))]
        for row, card in zip(rows.tolist(), _cards(items, catalog.frame[rows]), strict=True):
            cards[row] = card
        return replace(
            self,
            bundle=bundle,
            groups=item_groups(catalog),
            cards=tuple(cards),
            available=catalog.available.copy(),
            upcoming=np.flatnonzero(~catalog.published_by(self.now())),
        )

    def hide(self, item: str) -> None:
        """Show an item no more: the very next answer lacks it."""
        if (row := self.bundle.catalog.ids.row(item)) >= 0:
            self.available[row] = False

    def with_filter(self, asked: Filter) -> "ServingSnapshot":
        """For one request: nothing but what its filter lets through. Raises DataError where it cannot be applied."""
        return replace(self, filter_mask=asked.mask(self.bundle.catalog))

    def allowed(self) -> Bools:
        """(n,): what this request may be shown, now: it does not change while it is read."""
        allowed = self.available.copy() if self.filter_mask is None else self.available & self.filter_mask
        if len(self.upcoming):
            allowed[self.upcoming] &= self.bundle.catalog.published[self.upcoming] <= self.now()
        return allowed

    def rows(self, ids: Iterable[str]) -> Ints:
        """Rows of those items that the bundle knows."""
        rows = self.bundle.catalog.ids.rows(list(ids))
        return rows[rows >= 0]

    def states(self, state: UserState, now: int) -> UserStates:
        """One user's state as rows, for the recommender: items newer than the bundle are not among them."""
        rules = self.bundle.data.events
        rows = self.bundle.catalog.ids.rows(state.items)
        known = rows >= 0
        kept = rows[known]
        seen = np.array([rules.seen is None or e in rules.seen for e in state.events], dtype=bool)
        latest = int(state.times[-1]) + 1 if len(state.times) else now
        return UserStates(
            users=np.array([-1], dtype=np.int64),
            as_of=np.array([max(now, latest)], dtype=np.int64),
            items=Ragged(kept, np.zeros(1, np.int64), np.array([len(kept)], dtype=np.int64)),
            times=state.times[known],
            positive=state.positive(rules)[known],
            seen=seen[known],
            types=state.types(rules)[known],
        )

    def recommend(self, states: UserStates, seen: Ints, k: int, trace: dict[str, float]) -> Slate:
        """From the models: user tower, index, reranker."""
        exclude = Ragged(seen, np.zeros(1, np.int64), np.array([len(seen)], dtype=np.int64))
        recommender, allow = self.bundle.recommender, self.allowed()
        return self._fill(
            lambda wide: recommender.recommend(states, wide, allow=allow, exclude=exclude), k, "history", trace
        )

    def popular(self, seen: Ints, k: int, trace: dict[str, float]) -> Slate:
        """The most popular items, for whom nothing is known."""
        allowed = self.allowed()
        allowed[seen] = False
        order = self.bundle.popular
        at = np.flatnonzero(allowed[order])
        scores = (1 - at / max(1, len(order))).astype(np.float32)
        return self._fill(lambda wide: Candidates(order[at[None, :wide]], scores[None, :wide]), k, "popular", trace)

    def similar(self, row: int, k: int, trace: dict[str, float]) -> Slate:
        """Items like one item, itself and its variants left out."""
        variants = np.flatnonzero(self.groups == self.groups[row])
        exclude = Ragged(variants, np.zeros(1, np.int64), np.array([len(variants)], dtype=np.int64))
        rows, allow = np.array([row], dtype=np.int64), self.allowed()
        return self._fill(
            lambda wide: self.bundle.similar(rows, wide, allow=allow, exclude=exclude), k, "similar", trace
        )

    def search(
        self, vector: Floats, k: int, trace: dict[str, float], who: UserStates | None = None, weight: float = 0
    ) -> Slate:
        """Items whose content is nearest to a query (1, D), and near to who asks by so much weight."""
        bundle, allow = self.bundle, self.allowed() & self.bundle.catalog.has_content
        if who is None:
            return self._fill(lambda wide: bundle.search(vector, wide, allow=allow), k, "search", trace)
        return self._fill(
            lambda wide: bundle.search_for(vector, who, wide, weight=weight, allow=allow), k, "search", trace
        )

    def near(self, row: int, slate: Slate) -> list[dict[str, float | None]]:
        """How near each of the items similar to one item is to it, by behaviour and by channel of content."""
        space = self.bundle.content
        cosines = {} if space is None else space.near_item(row, slate.rows)
        return rows_by_item({"behaviour": slate.scores.tolist(), **cosines}, len(slate))

    def _fill(self, find: "Finder", k: int, reason: str, trace: dict[str, float]) -> Slate:
        wide = k
        while True:
            found = find(wide)
            slate = make_slate(
                found,
                self.bundle.catalog,
                self.groups,
                k,
                available=self.allowed(),
                reason=reason,
                trace=trace,
                fingerprint=self.bundle.fingerprint,
            )
            # variants of one product fall out of a slate: look further only where that left it short
            if len(slate) == k or int((found.rows[0] >= 0).sum()) < wide or wide >= len(self.groups):
                return slate
            wide = min(4 * wide, len(self.groups))

    def picture(self, item_id: str) -> tuple[bytes, str]:
        """Bytes and content type of an item's own picture.

        Raises ApiError 404 unless the catalogue names a regular file that is a picture, within the folder of the
        tables where the path is relative.
        """
        missing = ApiError(404, "no_picture", "there is no picture of this item", "item_id")
        row = self.bundle.catalog.ids.row(item_id)
        frame = self.bundle.catalog.frame
        image = frame.get_column(IMAGE)[row] if row >= 0 and frame.schema.get(IMAGE) == pl.String else None
        if not image or "://" in image or "\0" in image:
            raise missing
        root = Path(self.bundle.data.path).resolve()
        path = (root / image).resolve()
        if not Path(image).is_absolute() and not path.is_relative_to(root):
            raise missing
        try:
            if not path.is_file() or path.stat().st_size > MAX_IMAGE_BYTES:
                raise missing
            content = path.read_bytes()
        except OSError:
            raise missing from None
        kind = _picture_type(content[:16])
        if not kind:
            raise missing
        return content, kind


def card(item: str, title: str | None, categories: Sequence[str] | None, image: str | None) -> dict[str, Any]:
    """What is shown of an item."""
    return {"item_id": item, "title": title, "categories": categories or [], "image": media_url(item, image)}


def _cards(items: Iterable[str], frame: pl.DataFrame) -> Iterator[dict[str, Any]]:
    columns = [
        frame.get_column(name).to_list() if name in frame.columns else [None] * len(frame)
        for name in (TITLE, CATEGORIES, IMAGE)
    ]
    return (card(*values) for values in zip(items, *columns, strict=True))


def rows_by_item(columns: Mapping[str, Sequence[float | None]], k: int) -> list[dict[str, float | None]]:
    """Columns of k values each, as one dict for each of k items."""
    return [{name: values[i] for name, values in columns.items()} for i in range(k)]


class Finder(Protocol):
    """Candidates of one user, as many as asked for."""

    def __call__(self, wide: int, /) -> Candidates:
        """(1, wide)."""
        ...


def _picture_type(head: bytes) -> str:
    """By the first bytes: a file's name proves nothing."""
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return "image/avif" if head[4:12] == b"ftypavif" else ""
