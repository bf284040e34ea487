"""Tables to arrays: the catalogue and the log of one run."""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from experiments.config import RunConfig
from features.arrays import Ints
from features.catalog import Catalog
from features.content.embed import EmbedReport, cached_vectors, embed, item_contents, item_titles
from features.content.encoder_config import TEXT_CHANNEL, TITLE_CHANNEL, open_encoders
from features.content.media.decoder_pool import DecoderPool
from features.errors import ConfigError
from features.ids import IdMap
from features.interactions import Interactions
from features.log.event_log import events_frame
from features.progress import StartProgress
from features.schema import EVENT, ITEM, TIME, USER
from features.tables.read import event_weights, label_events, read_items, read_tables
from features.tables.report import Report
from features.tables.validate import repeated_events

if TYPE_CHECKING:
    from recsys.content.content_space import ContentSpace


@dataclass(frozen=True)
class Dataset:
    """What a run is made of.

    hash: 16 hex digits of the tables' content; report: what reading them found;
    left_out: events of items that the catalogue of this run leaves out; unknown: logged events of unknown items;
    twice: logged events that the tables have already;
    space: of the items' contents, and told: how it came to be, once they are encoded;
    fitted_until: time (µs) of the latest event that had a say in which items those are.
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


def load_dataset(config: RunConfig, progress: StartProgress | None = None) -> Dataset:
    """Read and check the tables and the service's log. The catalogue has no content vectors yet."""
    tables = read_tables(config.data, progress=progress)
    events, twice = tables.events, 0
    if config.data.log is not None and Path(config.data.log).is_dir():
        logged = events_frame(Path(config.data.log)).select(events.columns)
        both = pl.concat([events, logged], how="vertical_relaxed")
        again = repeated_events(both, np.ones(len(both), dtype=np.bool_))  # a log may be exported to the tables
        events, twice = both.filter(~pl.Series(again)), int(again.sum())
    items = tables.items
    ids = IdMap.shuffled(items.get_column(ITEM), config.seed)
    users = IdMap.shuffled(events.get_column(USER), config.seed)
    positive, seen = label_events(events, config.data.events)
    weights = event_weights(events, config.data.events)
    names = config.data.events.types
    types = IdMap(names).rows_of(events.get_column(EVENT)) + 1 if names else None
    rows = ids.rows_of(events.get_column(ITEM))
    known = rows >= 0
    log = Interactions.sort(
        users.rows_of(events.get_column(USER))[known],
        rows[known],
        events.get_column(TIME).to_physical().to_numpy()[known],
        positive[known],
        seen[known],
        len(users),
        len(ids),
        None if weights is None else weights[known],
        None if types is None else types[known],
        1 + len(names),
    )
    digest = hashlib.sha256()
    for frame in (items, events):
        digest.update(str(frame.schema).encode())
        digest.update(np.ascontiguousarray(frame.hash_rows(seed=0).to_numpy()).tobytes())
    catalog = Catalog.of(items, ids, np.zeros((len(ids), 1), np.float32), np.zeros(len(ids), np.bool_))
    return Dataset(
        catalog,
        users,
        log,
        digest.hexdigest()[:16],
        tables.report,
        unknown_items=int((~known).sum()),
        duplicates=twice,
    )


def keep_frequent(dataset: Dataset, cut: int, least: int) -> Dataset:
    """The data set without items that have fewer than `least` positive events before `cut` (µs).

    The vocabulary of a run depends on its cut: choosing it on all events would let the future in.
    """
    if least == 0:
        return dataset
    events, past = dataset.events, dataset.events.before(cut)
    counts = np.bincount(past.positives().items, minlength=events.n_items)
    rows: Ints = np.flatnonzero(counts >= least).astype(np.int64)
    return replace(_with_rows_of(dataset, dataset.catalog.take(rows)), fitted_until=past.latest)


def extend_dataset(old: Catalog, dataset: Dataset, least: int) -> Dataset:
    """The data set with the items of an older catalogue in its rows, and after them what came to have `least` events.

    See `recsys.towers.warm_start.extend_catalog`. Contents are as `load_dataset` leaves them.
    """
    from recsys.towers.warm_start import extend_catalog  # with torch, as below

    counts = np.bincount(dataset.events.positives().items, minlength=dataset.events.n_items)
    wanted = (counts >= least) | (old.ids.rows(dataset.catalog.ids.ids) >= 0)
    new = extend_catalog(old, dataset.catalog.take(np.flatnonzero(wanted).astype(np.int64)))
    return replace(_with_rows_of(dataset, new), fitted_until=dataset.events.latest)


def _with_rows_of(dataset: Dataset, catalog: Catalog) -> Dataset:
    events = dataset.events
    rows = catalog.ids.rows(dataset.catalog.ids.ids)
    kept = events.where(rows[events.items] >= 0)
    return replace(
        dataset,
        catalog=catalog,
        events=replace(kept, items=rows[kept.items], n_items=len(catalog)),
        left_out=len(events) - len(kept),
    )


def encode_contents(
    dataset: Dataset, config: RunConfig, progress: StartProgress | None = None, *, space: "ContentSpace | None" = None
) -> Dataset:
    """The data set with the content vectors of its items, in the space that fits them, or in the one that is given.

    Texts are encoded now; pictures, sounds and videos, and all that a native model reads, are those that
    `recsys embed` has left in the cache. Raises ConfigError when a native model's are not there yet, and SpaceError
    when these encoders do not lead into the given space.
    """
    from recsys.content.content_space import fit_content_space  # with torch, which embedding alone does not need

    if config.encoder is None:
        return dataset
    contents = item_contents(dataset.catalog.frame, Path(config.data.path))
    cache, limits = Path(config.cache), config.limits
    channels = {}
    with DecoderPool() as decoders:
        encoders = open_encoders(config.encoder, decoders, limits, cache / "models")
        if TEXT_CHANNEL in encoders:
            embed(contents, {TEXT_CHANNEL: encoders[TEXT_CHANNEL]}, cache, limits=limits, progress=progress)
        for name, encoder in encoders.items():
            channels[name] = cached_vectors(contents, encoder, cache, limits=limits)
        # titles matter where words have to be brought together with something else
        if TEXT_CHANNEL in encoders and any(
            one.present.any() for name, one in channels.items() if name != TEXT_CHANNEL
        ):
            text = encoders[TEXT_CHANNEL]
            named = item_titles(dataset.catalog.frame)
            channels[TITLE_CHANNEL] = cached_vectors(named, text, cache, limits=limits)
    if TEXT_CHANNEL not in encoders and not any(one.present.any() for one in channels.values()):
        names = ", ".join(encoders) or "no kind of content"
        raise ConfigError(f"{cache}: items have no vectors yet by what is read: {names}; run `recsys embed` first")
    if space is None:
        space, content, told = fit_content_space(channels, config.alignment, seed=config.seed, progress=progress)
    else:
        (space, content), told = space.with_catalog(channels), "contents in the space of the bundle"
    catalog = replace(dataset.catalog, content=content.vectors, has_content=content.present)
    return replace(dataset, catalog=catalog, space=space, content_note=told)


def embed_catalog(
    config: RunConfig, *, retry: bool = False, refetch: bool = False, progress: StartProgress | None = None
) -> tuple[EmbedReport, Report]:
    """Embed all that there is of every item, as far as the cache does not have it: what was done, and of what items.

    Raises ConfigError when the configuration has no encoder.
    """
    if config.encoder is None:
        raise ConfigError("encoder is null: there is nothing to embed with; set it to {kind: builtin}")
    items, report = read_items(config.data, progress=progress)
    contents = item_contents(items, Path(config.data.path))
    cache = Path(config.cache)
    with DecoderPool() as decoders:
        encoders = open_encoders(config.encoder, decoders, config.limits, cache / "models")
        work = partial(embed, cache=cache, limits=config.limits, retry=retry, refetch=refetch, progress=progress)
        titles = (
            work(item_titles(items), {TITLE_CHANNEL: encoders[TEXT_CHANNEL]}) if TEXT_CHANNEL in encoders else None
        )
        done = work(contents, encoders)  # last: its failures are those that stay on disk
    if titles is not None:
        done = replace(done, encoders=(*done.encoders, *titles.encoders), seconds=done.seconds + titles.seconds)
    return done, report
