"""Words find pictures, a picture its like and a sound its item, on items that the alignment has not seen.

There are five folds of the catalogue; items with the same title, or the same sound, are in one fold. For each fold
the content space is fitted on the other four. The queries are of the held-out items; what is searched is the whole
catalogue. A query is right where one of the first ten results is right, and *chance* is the exact expectation of that
for a random order.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import hypergeom

from experiments.bench.runner import Bar, Result
from experiments.config import RunConfig, load_config
from experiments.dataset import content_channels, embed_catalog, load_dataset
from experiments.evaluation.ranking import K, interval_dict
from features.arrays import Bools, Doubles, Floats, Ints
from features.content.embed import item_contents
from features.content.encoder_config import BuiltinConfig, open_encoders
from features.content.encoders.frozen import Media
from features.content.encoders.images import SIDE, EfficientNet, prepare
from features.content.media.decoder_pool import DecoderPool
from features.content.media.images import stretched
from features.content.media.worker import Array
from features.content.parts import Content, Limits, Text
from features.content.spaces import Embedded
from features.errors import ConfigError
from features.schema import AUDIO, CATEGORIES, DESCRIPTION, TITLE
from recsys.content.content_space import fit_content_space
from recsys.evaluation.bootstrap import bootstrap

FOLDS = 5
MARGIN = 0.1
"""Share of a picture's side that a changed picture lacks on each side."""

ANIMALS = "animals"


@dataclass(frozen=True)
class Direction:
    """q queries of held-out items, searched among the n items.

    rows (q,): their items; scores (q, n): -inf where an item is no candidate; right (q, n).
    """

    rows: Ints
    scores: Floats
    right: Bools

    @property
    def hits(self) -> Doubles:
        """(q,): 1 where one of the first K candidates is right."""
        return np.asarray(self._first.any(1), dtype=np.float64)

    @property
    def precision(self) -> Doubles:
        """(q,): share of the first K candidates that are right."""
        return np.asarray(self._first.mean(1))

    @property
    def chance(self) -> tuple[Doubles, Doubles]:
        """(q,) hits, and (q,) precision, that a random order is expected to have."""
        candidates = np.isfinite(self.scores)
        n, r = candidates.sum(1), (candidates & self.right).sum(1)
        return np.asarray(hypergeom.sf(0, n, r, K)), r / n

    @property
    def _first(self) -> Bools:
        first = np.argsort(-self.scores, axis=1, kind="stable")[:, :K]
        return np.asarray(np.take_along_axis(self.right, first, axis=1))


@dataclass(frozen=True)
class Items:
    """n items and what is asked for them.

    channels: of the items, in the encoders' spaces; queries: name -> (n,) vectors of queries; titles, sounds, folders
    (n,): numbers that are equal where titles, files of sound, and categories are; group (n,): from 0, equal where
    items are held out together; animals (n,): in this category.
    """

    channels: Mapping[str, Embedded]
    queries: Mapping[str, Embedded]
    titles: Ints
    sounds: Ints
    folders: Ints
    group: Ints
    animals: Bools


def run(*, short: bool = False, config: str = "configs/demo-media.yaml") -> Result:
    """R@10 of each direction beside chance, with intervals over queries.

    config: a configuration with the built-in encoders whose data exist; contents that are not embedded yet are.
    short: one fold. Raises ConfigError for other encoders.
    """
    settings = load_config(Path(config))
    items, data_hash = read(settings)
    folds = np.array_split(np.random.default_rng(settings.seed).permutation(items.group.max() + 1), FOLDS)
    held = [np.isin(items.group, fold) for fold in folds][: 1 if short else None]
    parts = [directions(items, part, settings) for part in held]
    split = hashlib.sha256(b"".join(part.tobytes() for part in held)).hexdigest()[:16]
    figures: dict[str, Any] = {"items": len(items.group), "folds": len(held), "data": data_hash, "split": split}
    bars = []
    for name in parts[0]:
        found = [part[name] for part in parts]
        hits = bootstrap(np.concatenate([d.hits for d in found]), seed=settings.seed)
        chance, by_chance = (float(np.concatenate([d.chance[at] for d in found]).mean()) for at in (0, 1))
        figures[name] = {
            "queries": sum(len(d.rows) for d in found),
            f"R@{K}": interval_dict(hits),
            f"R@{K} by chance": round(chance, 4),
            f"P@{K}": round(float(np.concatenate([d.precision for d in found]).mean()), 4),
            f"P@{K} by chance": round(by_chance, 4),
        }
        bars.append(Bar(f"{name}: low end of R@{K} over chance", hits.low - chance, ">", 0.0))
    return Result(figures, bars)


def read(config: RunConfig) -> tuple[Items, str]:
    """The embedded items and queries of a configuration, and the hash of its data."""
    if not isinstance(config.encoder, BuiltinConfig) or config.encoder.without:
        raise ConfigError("bench media needs all built-in encoders: encoder: {kind: builtin} in the configuration")
    embed_catalog(config)
    dataset = load_dataset(config)
    frame = dataset.catalog.frame
    pictures = item_contents(frame.select(pl.exclude(AUDIO)), Path(config.data.path))
    words = {"title": frame.get_column(TITLE), "German": frame.get_column(DESCRIPTION).str.split(" · ").list.first()}
    with DecoderPool() as decoders:
        text = open_encoders(config.encoder, decoders, config.limits, Path(config.cache) / "models")["text"]
        media = Media(decoders, config.limits)
        eyes = EfficientNet(media, Path(config.cache) / "models")
        queries = {
            name: text.encode([Content.of(Text(word)) if word else Content() for word in column], task="query")
            for name, column in words.items()
        }
        queries["changed picture"] = media.embed(
            pictures, frozenset({"image"}), changed, eyes.forward, eyes.key, batch=eyes.batch
        )
    titles = _codes(frame.get_column(TITLE))
    sounds = _codes(pl.Series(_digests(frame.get_column(AUDIO), Path(config.data.path))))
    items = Items(
        content_channels(dataset.catalog, config),
        queries,
        titles,
        sounds,
        _codes(frame.get_column(CATEGORIES).list.join("/")),
        _together(titles, sounds),
        frame.get_column(CATEGORIES).list.contains(ANIMALS).fill_null(value=False).to_numpy(),
    )
    return items, dataset.hash


def changed(data: bytes, limits: Limits) -> Array:
    """The picture that `EfficientNet` reads, mirrored and without its margin: (f, SIDE, SIDE, 3) uint8."""
    cut = int(MARGIN * SIDE)
    frames = prepare(data, limits)
    return np.stack([stretched(np.ascontiguousarray(f[cut:-cut, cut:-cut][:, ::-1]), SIDE) for f in frames])


def directions(items: Items, held: Bools, config: RunConfig) -> dict[str, Direction]:
    """What queries of the held-out items (n,) find in a space that is fitted on the others."""
    fit = {name: Embedded(c.space, c.vectors[~held], c.present[~held]) for name, c in items.channels.items()}
    space = fit_content_space(fit, config.alignment, seed=config.seed)[0]
    pictures = space.place({"image": items.channels["image"]})
    described = space.place({name: items.channels[name] for name in ("title", "text", "image")})
    sounds = space.place({"sound": items.channels["sound"]})
    itself = np.eye(len(held), dtype=np.bool_)
    same_title, same_sound, same_folder = (
        codes[:, None] == codes for codes in (items.titles, items.sounds, items.folders)
    )

    def asked(
        queries: Embedded, pool: Embedded, right: Bools, which: Bools, *, but: Bools | None = None
    ) -> Direction:
        candidate = np.broadcast_to(pool.present, itself.shape) & (True if but is None else ~but)
        rows = np.flatnonzero(held & which & queries.present & (right & candidate).any(1))
        scores = np.where(candidate[rows], queries.vectors[rows] @ pool.vectors.T, -np.inf)
        return Direction(rows, scores, right[rows])

    words, changed_pictures = (
        {name: space.place({channel: items.queries[name]}) for name in names}
        for channel, names in (("text", ("title", "German")), ("image", ("changed picture",)))
    )
    everything = np.ones(len(held), dtype=np.bool_)
    return {
        "title to picture": asked(words["title"], pictures, same_title, everything),
        "German words to picture": asked(words["German"], pictures, same_title, everything),
        "changed picture to the picture": asked(changed_pictures["changed picture"], pictures, itself, everything),
        "picture to its like": asked(pictures, pictures, same_folder, everything, but=itself),
        "sound to its item": asked(sounds, described, same_title | same_sound, everything),
        "animal's sound to its item": asked(sounds, described, same_title | same_sound, items.animals),
    }


def _codes(values: pl.Series) -> Ints:
    """(n,): equal numbers where values are equal; each null has its own."""
    codes = values.rank("dense").cast(pl.Int64).to_numpy().astype(np.float64)
    missing = np.isnan(codes)
    codes[missing] = -1.0 - np.arange(missing.sum())
    return codes.astype(np.int64)


def _together(*codes: Ints) -> Ints:
    """(n,): numbers from 0 that are equal where items are connected by equal codes (n,)."""
    n = len(codes[0])
    first = [np.unique(c, return_index=True, return_inverse=True)[1:] for c in codes]
    ends = np.concatenate([index[inverse] for index, inverse in first])
    starts = np.tile(np.arange(n), len(codes))
    _, components = connected_components(coo_array((np.ones(len(ends)), (starts, ends)), shape=(n, n)))
    return np.asarray(components, dtype=np.int64)


def _digests(files: pl.Series, root: Path) -> list[str | None]:
    return [None if file is None else hashlib.sha256((root / file).read_bytes()).hexdigest() for file in files]
