"""The data set of a run: the catalogue and the interactions as arrays, read from tables and the event log."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from experiments.config import RunConfig
from experiments.preflight import preflight
from experiments.simulation.people import SIMULATED
from features.arrays import Ints, Keys
from features.catalog import Catalog
from features.content.embed import EmbedReport, cached_vectors, embed, item_contents, item_titles
from features.content.encoder_config import TEXT_CHANNEL, TITLE_CHANNEL, open_encoders
from features.content.media.decoder_pool import DecoderPool
from features.content.spaces import Embedded
from features.errors import ConfigError
from features.history_rules import Labels, column_keys, in_request_order, without_ignored
from features.ids import IdMap
from features.instants import DAY
from features.interactions import SAME_TIME, Interactions
from features.log.corrections import corrections_of
from features.log.reader import ORDER, damaged_lines, read_events
from features.log.records import CORRECTIONS, EXPOSURES
from features.log.segments import stream_paths
from features.progress import StartProgress
from features.schema import ITEM, TIME, USER
from features.tables.findings import NO_POSITIVE, damaged_log, unnamed_types
from features.tables.read import event_weights, read_items, read_tables
from features.tables.report import Problem, Report
from features.tables.sources.extract import is_simulated
from features.tables.validate import repeated_events
from recsys.bundle.trained_events import event_keys

if TYPE_CHECKING:
    from recsys.content.content_space import ContentSpace

MANY = 50
"""Number of events from which on a user with most of the events is named, for a program may have made them."""


@dataclass(frozen=True)
class Dataset:
    """The input of a run.

    hash: 16 hex digits, a digest of the tables' content, and of the names and sizes of the log's exposures;
    report: counts and problems of reading the tables;
    left_out: number of events whose items are not in this catalogue;
    unknown_items: number of logged events whose items are not in the tables;
    duplicates: number of logged events that the tables contain already;
    space, content_note: content space of the items and a line on how it was fitted, set by `encode_contents`;
    fitted_until: time (µs) of the latest event that the choice of items depends on;
    simulated: whether the events of the tables are of simulated people.
    """

    catalog: Catalog
    users: IdMap
    events: Interactions
    hash: str
    report: Report
    left_out: int = 0
    unknown_items: int = 0
    duplicates: int = 0
    space: "ContentSpace | None" = None
    content_note: str = ""
    fitted_until: int = int(np.iinfo(np.int64).min)
    simulated: bool = False

    def event_keys(self) -> Keys:
        """(n,) uint64: a key of each event, the same in every run that reads the event."""
        return event_keys(self.events, self.users.ids, self.catalog.ids.ids)


def load_dataset(config: RunConfig, progress: StartProgress | None = None) -> Dataset:
    """Read and validate the tables and the event log of the service. The catalogue has no content vectors yet."""
    tables = read_tables(config.data, progress=progress)
    events, notes = without_ignored(tables.usable_events, config.data.events), list(tables.report.notes)
    damaged: list[Problem] = []
    n_logged = duplicates = 0
    if config.data.log is not None:
        corrections = corrections_of(Path(config.data.log))
        events = corrections.corrected_frame(events)
        logged, lines = read_events(Path(config.data.log), corrections.corrected_frame)
        lines = [*dict.fromkeys((*lines, *damaged_lines(Path(config.data.log), CORRECTIONS)))]
        damaged = damaged_log(config.data.log, lines)
        notes += unnamed_types(logged, config.data.events, "event log") if len(logged) else []
        notes += [] if len(logged) else [f"event log: {config.data.log} has no events yet"]
        logged = without_ignored(logged, config.data.events)
        logged = in_request_order(logged, logged.get_column(ORDER)).select(events.columns)
        merged = pl.concat([events, logged], how="vertical_relaxed")
        # an event is in both when the log was exported to the tables
        repeated = repeated_events(merged, np.ones(len(merged), dtype=np.bool_))
        events, duplicates = merged.filter(~pl.Series(repeated)), int(repeated.sum())
        n_logged = int((~repeated[len(merged) - len(logged) :]).sum())
    items = tables.items
    ids = IdMap.shuffled(items.get_column(ITEM), config.seed)
    users = IdMap.shuffled(events.get_column(USER), config.seed)
    rules = config.data.events
    labels, weights = Labels.of_frame(events, rules), event_weights(events, rules)
    rows = ids.rows_of(events.get_column(ITEM))
    log = Interactions.sort(
        users.rows_of(events.get_column(USER)),
        rows,
        events.get_column(TIME).to_physical().to_numpy(),
        labels.positive,
        labels.seen,
        len(users),
        len(ids),
        weights,
        labels.types if rules.types else None,
        1 + len(rules.types),
        rules,
        column_keys(events.get_column(ITEM).cast(pl.String)),
    )
    catalog = Catalog.of(items, ids, np.zeros((len(ids), 1), np.float32), np.zeros(len(ids), np.bool_))
    problems = tuple(p for p in tables.report.problems if p.reason != NO_POSITIVE or not labels.positive.any())
    dataset = Dataset(
        catalog,
        users,
        log,
        _digest(config, items, events),
        replace(tables.report, problems=(*problems, *damaged)),
        unknown_items=int((rows[len(rows) - n_logged :] < 0).sum()),
        duplicates=duplicates,
        simulated=is_simulated(Path(config.data.path)),
    )
    notes += [f"the events of the tables are {SIMULATED}"] if dataset.simulated else []
    notes += _dataset_notes(dataset, config.split.test)
    return replace(dataset, report=replace(dataset.report, notes=tuple(notes)))


def _digest(config: RunConfig, *frames: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(str(frame.schema).encode())
        digest.update(np.ascontiguousarray(frame.hash_rows(seed=0).to_numpy()).tobytes())
    if config.data.log is not None:  # the reranker learns from exposures
        for path in stream_paths(Path(config.data.log), EXPOSURES):
            with suppress(FileNotFoundError):  # pruned since it was listed
                digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def _dataset_notes(dataset: Dataset, newest: float) -> list[str]:
    """What the events and the catalogue together say about the data. newest: share of the events that are tested."""
    events, notes = dataset.events, []
    if dataset.unknown_items:
        notes.append(f"{dataset.unknown_items:,} logged events ignored: their items are not in the tables")
    if dataset.duplicates:
        notes.append(f"{dataset.duplicates:,} logged events ignored: the tables contain them")
    if early := int((events.times // DAY < dataset.catalog.published[events.items] // DAY).sum()):
        notes.append(f"{early:,} events are older than the publication of their item: as targets they cannot be hit")
    if not len(events):
        return notes
    per_user, per_item = np.bincount(events.users), np.bincount(events.items)
    if len(events) > 1 and per_item.max() == len(events):
        item = dataset.catalog.ids.ids[int(per_item.argmax())]
        notes.append(f"all {len(events):,} events are of the item {item!r}: check item_id")
    if per_user.max() == 1:
        notes.append("each user has one event only: no event has a history; check user_id")
    elif not events.follows.any():
        notes.append(SAME_TIME)
    recent = events.where(events.times >= np.quantile(events.times, 1 - newest))
    for part, name, least in ((events, "events", 0.1), (recent, f"of the newest {newest:.0%} of the events", 0.5)):
        counts = np.bincount(part.users, minlength=dataset.events.n_users)
        user, share = int(counts.argmax()), counts.max() / len(part)
        if share >= least and counts.max() >= max(MANY, 5 * len(part) / events.n_users):
            notes.append(
                f"the user {dataset.users.ids[user]!r} has {counts[user]:,} of {len(part):,} {name} ({share:.0%}): "
                "if it is no person, leave its events out"
            )
            break
    return notes


def keep_frequent(dataset: Dataset, cut: int, min_events: int) -> Dataset:
    """The data set without items that have fewer than `min_events` positive events before `cut` (µs).

    Later events do not count: a vocabulary chosen on all events would leak the future.
    """
    if min_events == 0:
        return dataset
    events, past = dataset.events, dataset.events.before(cut)
    counts = np.bincount(past.positives().items, minlength=events.n_items)
    rows: Ints = np.flatnonzero(counts >= min_events).astype(np.int64)
    return replace(with_catalog(dataset, dataset.catalog.take(rows)), fitted_until=past.latest)


def extend_dataset(old: Catalog, dataset: Dataset, min_events: int) -> Dataset:
    """The data set on an extended catalogue: items of the old one keep their rows, new items follow.

    A new item needs `min_events` positive events. See `recsys.towers.warm_start.extend_catalog`. The catalogue has no
    content vectors, like that of `load_dataset`.
    """
    from recsys.towers.warm_start import extend_catalog  # imports torch: lazy, as in `encode_contents`

    counts = np.bincount(dataset.events.positives().items, minlength=dataset.events.n_items)
    keep = (counts >= min_events) | (old.ids.rows(dataset.catalog.ids.ids) >= 0)
    new = extend_catalog(old, dataset.catalog.take(np.flatnonzero(keep).astype(np.int64)))
    return replace(with_catalog(dataset, new), fitted_until=dataset.events.latest)


def with_catalog(dataset: Dataset, catalog: Catalog) -> Dataset:
    """The data set in the rows of another catalogue, without events of items that it does not contain."""
    events = dataset.events
    rows = catalog.ids.rows(dataset.catalog.ids.ids)
    kept = events.renumbered(rows, len(catalog))
    return replace(dataset, catalog=catalog, events=kept, left_out=len(events) - len(kept))


def content_channels(
    catalog: Catalog, config: RunConfig, progress: StartProgress | None = None
) -> dict[str, Embedded]:
    """Channel -> vectors of the catalogue's items in the encoder's space; see `encode_contents`.

    Raises ConfigError where there is no encoder, and where the configured ones have no vectors in the cache.
    """
    if config.encoder is None:
        raise ConfigError("encoder is null: items have no content; set it to {kind: builtin}")
    contents = item_contents(catalog.frame, Path(config.data.path))
    cache, limits = Path(config.cache), config.limits
    channels = {}
    with DecoderPool() as decoders:
        encoders = open_encoders(config.encoder, decoders, limits, cache / "models")
        if TEXT_CHANNEL in encoders:
            embed(contents, {TEXT_CHANNEL: encoders[TEXT_CHANNEL]}, cache, limits=limits, progress=progress)
        for name, encoder in encoders.items():
            channels[name] = cached_vectors(contents, encoder, cache, limits=limits)
        # titles are needed only where texts are aligned with another channel
        if TEXT_CHANNEL in encoders and any(
            channel.present.any() for name, channel in channels.items() if name != TEXT_CHANNEL
        ):
            titles = item_titles(catalog.frame)
            channels[TITLE_CHANNEL] = cached_vectors(titles, encoders[TEXT_CHANNEL], cache, limits=limits)
    if TEXT_CHANNEL not in encoders and not any(channel.present.any() for channel in channels.values()):
        names = ", ".join(encoders) or "no kind of content"
        raise ConfigError(
            f"{cache}: no item has a vector of the configured encoders ({names}); run `recsys embed` first"
        )
    return channels


def encode_contents(
    dataset: Dataset, config: RunConfig, progress: StartProgress | None = None, *, space: "ContentSpace | None" = None
) -> Dataset:
    """The data set with the content vectors of its items, in `space`, or without it in a space fitted here.

    Texts are encoded by this call. Vectors of images, sounds and videos, and all vectors of a native model, are read
    from the cache that `recsys embed` fills. Raises ConfigError when the configured encoders have no vectors in the
    cache, and SpaceError when their vectors do not fit the given space.
    """
    from recsys.content.content_space import fit_content_space  # imports torch: lazy, since `recsys embed` needs none

    if config.encoder is None:
        return dataset
    channels = content_channels(dataset.catalog, config, progress)
    if space is None:
        space, content, note = fit_content_space(channels, config.alignment, seed=config.seed, progress=progress)
    else:
        (space, content), note = space.with_catalog(channels), "contents in the space of the bundle"
    catalog = replace(dataset.catalog, content=content.vectors, has_content=content.present)
    return replace(dataset, catalog=catalog, space=space, content_note=note)


def embed_catalog(
    config: RunConfig, *, retry: bool = False, refetch: bool = False, progress: StartProgress | None = None
) -> tuple[EmbedReport, Report]:
    """Embed every content of every item that the cache does not have: the report of embedding, and that of the items.

    Raises ConfigError when the configuration has no encoder.
    """
    if config.encoder is None:
        raise ConfigError("encoder is null: contents cannot be embedded; set it to {kind: builtin}")
    preflight(config)
    items, report = read_items(config.data, progress=progress)
    contents = item_contents(items, Path(config.data.path))
    cache = Path(config.cache)
    with DecoderPool() as decoders:
        encoders = open_encoders(config.encoder, decoders, config.limits, cache / "models")
        run = partial(embed, cache=cache, limits=config.limits, retry=retry, refetch=refetch, progress=progress)
        titles = (
            run(item_titles(items), {TITLE_CHANNEL: encoders[TEXT_CHANNEL]}) if TEXT_CHANNEL in encoders else None
        )
        embedded = run(contents, encoders)  # last: each run overwrites the file of failures
    if titles is not None:
        seconds = embedded.seconds + titles.seconds
        embedded = replace(embedded, encoders=(*embedded.encoders, *titles.encoders), seconds=seconds)
    return embedded, report
