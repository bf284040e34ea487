"""A toy bundle whose responses can be computed by hand, for tests of the service."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.arrays import Bools, Doubles, Floats, Ints
from features.catalog import Catalog
from features.content.encoders.frozen import Media
from features.content.encoders.images import prepare
from features.content.encoders.text import embed_texts
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Content, Limits, Modality
from features.content.spaces import Embedded, Encoder, SpaceKey, Task, unit
from features.errors import BundleError, DataError
from features.history_rules import seen_items, short_keys
from features.ids import IdMap, id_keys
from features.interactions import Ragged, UserStates
from features.progress import Step
from features.schema import DataConfig, EventRules, Placement
from features.store.base import FeatureStore
from features.store.jobs.fill import fill
from features.store.user_state import UserState
from features.tables.event_files import EventFiles
from recsys.bundle.item_map import ItemMap
from recsys.bundle.upsert import upsert_catalog, upsert_content_space
from recsys.content.content_space import ContentSpace
from recsys.interfaces import Candidates, sort_candidates, top_k
from recsys.ranking.explain import Channel, Explainer
from serving.servable import ServableBundle
from serving.settings import ServeSettings

RULES = EventRules(positive={"rating": 3.5, "click": None}, seen=("rating", "click"))
PLACES = {"home": Placement(), "again": Placement(repeats=True)}
NOW = 1_800_000_000_000_000


def near(row: int, n: int) -> Floats:
    """(n,) float32: similarity of n items to one row. Nearer rows score higher; the smaller row wins ties."""
    distance = np.abs(np.arange(n) - row)
    return (1 - distance / n - (np.arange(n) > row) * 1e-3).astype(np.float32)


@dataclass(frozen=True)
class Nearest:
    """Recommends the items nearest to the user's last positive item."""

    n: int
    broken: bool = False
    calibrated: bool = False

    def recommend(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        if self.broken:
            raise RuntimeError("this model does not work")
        positives = states.positives()
        scores = np.stack([near(int(positives.flat[positives.end[i] - 1]), self.n) for i in range(len(states))])
        return top_k(scores, k, allow=allow, exclude=exclude)

    def ranked(
        self, states: UserStates, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        return self.recommend(states, self.n, allow=allow, exclude=exclude)

    def rank(self, states: UserStates, rows: Ints) -> Candidates:
        if self.broken:
            raise RuntimeError("this model does not work")
        scores = self.retrieval_scores(states) if states.positives().lengths[0] else -np.arange(self.n)
        return sort_candidates(rows[None], scores[rows][None].astype(np.float32), len(rows))

    def probabilities(self, rows: Ints, scores: Floats) -> Doubles | None:
        return np.exp(-np.abs(scores.astype(np.float64))) if self.calibrated else None

    def retrieval_scores(self, states: UserStates) -> Floats:
        positives = states.positives()
        return near(int(positives.flat[positives.end[0] - 1]), self.n)

    def item_scores(self, states: UserStates, row: int) -> Floats:
        return np.array(
            [self.retrieval_scores(states[at : at + 1])[row] for at in range(len(states))], dtype=np.float32
        )

    def contributions(
        self, states: UserStates, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Doubles | None:
        return None

    def features(
        self, states: UserStates, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Floats | None:
        return None


@dataclass(frozen=True)
class ToyBundle:
    """A bundle of items i0, i1, …, in order of popularity."""

    fingerprint: str
    catalog: Catalog
    data: DataConfig
    recommender: Nearest
    popular: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    vectors: Floats | None = None
    content: ContentSpace | None = None
    item_map: ItemMap | None = None
    manifest: dict[str, Any] = field(default_factory=lambda: {"config": {"encoder": None}})
    note: str = ""

    @property
    def popularity(self) -> Floats:
        return (1 - np.arange(len(self.catalog)) / len(self.catalog)).astype(np.float32)

    closed: list[str] = field(default_factory=list)
    """Its fingerprint, once `close` was called."""

    @property
    def explainer(self) -> Explainer:
        channels = {} if self.content is None else self.content.channels
        return Explainer(
            self.catalog,
            {name: Channel(channel.vectors, channel.present) for name, channel in channels.items()},
            popularity=np.arange(len(self.catalog), 0, -1, dtype=np.float32),
            trained=len(self.catalog),
            popular_days=None,
            fitted_until=NOW,
        )

    def close(self) -> None:
        self.closed.append(self.fingerprint)

    def search(self, content: Floats, k: int, *, allow: Bools | None = None) -> Candidates:
        return top_k(content @ self.catalog.content.T, k, allow=allow)

    def search_for(
        self, content: Floats, states: UserStates, k: int, *, weight: float, allow: Bools | None = None
    ) -> Candidates:
        if self.recommender.broken:
            raise RuntimeError("this model does not work")
        positives = states.positives()
        by_user = np.stack([near(int(positives.flat[end - 1]), len(self.catalog)) for end in positives.end])
        scores: Floats = (1 - weight) * (content @ self.catalog.content.T) + weight * by_user
        return top_k(scores, k, allow=allow)

    def similar(self, rows: Ints, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None) -> Candidates:
        return top_k(np.stack([near(int(r), len(self.catalog)) for r in rows]), k, allow=allow, exclude=exclude)


def toy_upsert(bundle: ServableBundle, items: pl.DataFrame, channels: Mapping[str, Embedded]) -> ServableBundle:
    """`recsys.bundle.upsert.upsert_items` for a toy bundle."""
    assert isinstance(bundle, ToyBundle)
    placed = bundle.content.place(channels) if bundle.content and channels else None
    catalog, rows = upsert_catalog(bundle.catalog, items, placed)
    n, total = len(bundle.catalog), len(catalog)
    return replace(
        bundle,
        catalog=catalog,
        recommender=replace(bundle.recommender, n=total),
        popular=np.concatenate([bundle.popular, np.arange(n, total)]),
        content=bundle.content and upsert_content_space(bundle.content, total, rows, channels),
    )


def toy_bundle(
    folder: Path, n: int = 12, *, fingerprint: str = "toy-1", images: dict[int, str] | None = None
) -> ToyBundle:
    """A bundle of n items. i3 is not available; i4 and i5 are variants of one product. images: row -> image."""
    ids = IdMap(tuple(f"i{row}" for row in range(n)))
    frame = pl.DataFrame(
        {
            "item_id": ids.ids,
            "title": [f"Item <b>{row}</b>" for row in range(n)],
            "description": [None] * n,
            "categories": [["even" if row % 2 == 0 else "odd"] for row in range(n)],
            "price": [1.0] * n,
            "available": [row != 3 for row in range(n)],
            "published_at": [None] * n,
            "image": [(images or {}).get(row) for row in range(n)],
            "group_id": ["g" if row in (4, 5) else None for row in range(n)],
        },
        schema_overrides={
            "published_at": pl.Datetime("us", "UTC"),
            "description": pl.String,
            "image": pl.String,
            "group_id": pl.String,
        },
    )
    catalog = Catalog.of(frame, ids, np.zeros((n, 1), np.float32), np.zeros(n, dtype=bool))
    data = DataConfig(source="folder", path=str(folder), events=RULES, placements=PLACES)
    return ToyBundle(fingerprint, catalog, data, Nearest(n), np.arange(n, dtype=np.int64))


def toy_events(rows: list[tuple[str, str, float]] | None = None) -> pl.DataFrame:
    """Events table of rows (user, item, rating), one second apart, from 2020-01-01 on."""
    rows = [("ann", "i1", 5.0), ("ann", "i8", 4.0), ("bob", "i2", 1.0)] if rows is None else rows
    started = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
    return pl.DataFrame(
        {
            "user_id": [user for user, _, _ in rows],
            "item_id": [item for _, item, _ in rows],
            "event": ["rating"] * len(rows),
            "timestamp": [started + 1_000_000 * i for i in range(len(rows))],
            "value": [value for _, _, value in rows],
            "event_id": [None] * len(rows),
            "request_id": [None] * len(rows),
            "position": [None] * len(rows),
            "propensity": [None] * len(rows),
        },
        schema={
            "user_id": pl.String,
            "item_id": pl.String,
            "event": pl.String,
            "timestamp": pl.Int64,
            "value": pl.Float64,
            "event_id": pl.String,
            "request_id": pl.String,
            "position": pl.Int32,
            "propensity": pl.Float64,
        },
    ).with_columns(pl.col("timestamp").cast(pl.Datetime("us", "UTC")))


COLOURS = SpaceKey("colours", "1", 3)
RED, GREEN, BLUE = np.eye(3, dtype=np.float32)
WORDS = {"red": RED, "green": GREEN, "blue": BLUE}


def with_contents(bundle: ToyBundle, **limits: object) -> ToyBundle:
    """The bundle with content vectors: text vectors turn from red (i0) to nearly green (the last item); i9 has none.

    Every second item has an image: green for i0, i4, i8, …, red for i2, i6, ….
    """
    n = len(bundle.catalog)
    angle = np.radians(88 * np.arange(n) / (n - 1))
    has_text, row = np.arange(n) != 9, np.arange(n)
    texts = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1).astype(np.float32) * has_text[:, None]
    pictures = np.where((row % 4 == 0)[:, None], GREEN, RED) * (row % 2 == 0)[:, None]
    channels = {"text": Embedded(COLOURS, texts, has_text), "image": Embedded(COLOURS, pictures, row % 2 == 0)}
    config = {"encoder": {"kind": "builtin"}, "limits": limits, "cache": "never written"}
    return replace(
        bundle,
        catalog=replace(bundle.catalog, content=texts, has_content=has_text),
        content=ContentSpace(COLOURS, None, channels),
        manifest={"config": config},
    )


class ToyWords:
    """Text encoder that knows the names of three colours."""

    modalities: frozenset[Modality] = frozenset({"text"})
    key, reader = COLOURS, ""
    tasks: tuple[Task, ...] = ("document", "query")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.read: list[str] = []

    def space(self, task: Task = "document") -> SpaceKey:
        return self.key

    def words(self, texts: Sequence[str]) -> Floats:
        self.read += texts
        words = [re.findall(r"\w+", text) for text in texts]
        return unit(np.stack([sum((WORDS[w] for w in text if w in WORDS), 0 * RED) for text in words]))

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        assert task in self.tasks
        return embed_texts(contents, self.words, self.key, self.limits, None)


class ToyEyes(ToyWords):
    """Image and video encoder: the mean colour. Files are decoded by the real decoders."""

    modalities = frozenset({"image", "video"})

    def __init__(self, decoders: DecoderPool, limits: Limits) -> None:
        self.media = Media(decoders, limits)

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        assert task in self.tasks
        return self.media.embed(contents, self.modalities, prepare, self.see, self.key, batch=8)

    def see(self, frames: list[Any]) -> Floats:
        """(k, 3) mean colours of k frames."""
        return np.stack([frame.mean((0, 1)) for frame in frames]).astype(np.float32)


def toy_encoders(config: object, decoders: DecoderPool, limits: Limits, models: Path) -> dict[str, Encoder]:
    """`open_encoders` with the toy encoders."""
    return {"text": ToyWords(limits), "image": ToyEyes(decoders, limits)}


class ToyShelf:
    """A folder of bundles in memory. now: name of the current bundle."""

    def __init__(self, bundle: ToyBundle | None) -> None:
        self.bundles: dict[str, ToyBundle] = {}
        self.now = ""
        if bundle is not None:
            self.put("first", bundle)

    def put(self, name: str, bundle: ToyBundle) -> None:
        self.bundles[name] = bundle
        self.now = name

    def current(self, root: Path) -> Path:
        if not self.now:
            raise BundleError(f"{root} has no current bundle")
        return root / self.now

    def find(self, root: Path, name: str) -> Path:
        if name not in self.bundles:
            raise BundleError(f"{root}: 0 bundles begin with {name!r}")
        return root / name

    def load(self, path: Path) -> ToyBundle:
        if path.name not in self.bundles:
            raise BundleError(f"{path} is truncated")
        return self.bundles[path.name]


def toy_tables(folder: Path, events: pl.DataFrame, name: str = "events.parquet", **options: Any) -> EventFiles:
    """The events table in a folder, of which one file is written."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    events.write_parquet(folder / name, **options)
    return EventFiles(DataConfig(source="folder", path=str(folder), events=RULES))


class ToyFiller:
    """Fills a store at once, in this process. folder: of tables and log; events: the events table, or DataError."""

    running, fault = False, ""

    def __init__(self, folder: Path, events: Callable[[DataConfig], pl.DataFrame] = lambda _: toy_events()) -> None:
        self._folder, self._events = folder, events

    def start(self, store: FeatureStore, data: DataConfig) -> None:
        file = self._folder / "tables" / "events.parquet"
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        with suppress(DataError):
            self._events(data).write_parquet(file)
        fill(store, data.model_copy(update={"path": str(file.parent)}), self._folder / "log")

    def stop(self) -> None:
        """Nothing is running."""


def toy_settings(folder: Path, **options: object) -> ServeSettings:
    """Settings with all paths in one folder."""
    return ServeSettings.model_validate(
        {
            "bundles": folder / "bundles",
            "log": folder / "log",
            "preload": False,
            "deadline": 60,
            "exposure_sample": 0.0,
            **options,
        }
    )


def broken(bundle: ToyBundle) -> ToyBundle:
    """The bundle with a recommender that raises."""
    return replace(bundle, recommender=Nearest(len(bundle.catalog), broken=True))


def has_seen(state: UserState, items: Sequence[str]) -> Bools:
    """(n,) bool: which of n items a state says were seen."""
    return np.isin(short_keys(id_keys(items)), seen_items(state.seen))
