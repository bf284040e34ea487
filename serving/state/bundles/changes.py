"""What puts change: which items differ from those of a bundle, and which have other content."""

import numpy as np
import polars as pl

from features.arrays import Bools, Ints
from features.catalog import as_type
from features.content.embed import CONTENT_COLUMNS
from features.content.encoder_config import TEXT_CHANNEL, TITLE_CHANNEL
from features.content.spaces import Embedded
from features.schema import AUDIO, IMAGE, ITEM, VIDEO
from serving.servable import ServableBundle


def has_changed(bundle: ServableBundle, items: pl.DataFrame) -> Bools:
    """(m,) bool: items that differ from the bundle.

    An item also differs when it has media and the bundle has media channels but no media vector of the item: it was
    not embedded yet when the bundle was trained.
    """
    rows = _rows(bundle, items)
    frame = bundle.catalog.frame
    return ~_same(bundle, items, rows, [name for name in frame.columns if name in items.columns]) | _lacks_media(
        bundle, items, rows
    )


def has_same_content(bundle: ServableBundle, items: pl.DataFrame) -> Bools:
    """(m,) bool: items of the bundle whose content is as it was, so that their vectors hold."""
    rows = _rows(bundle, items)
    return _same(bundle, items, rows, CONTENT_COLUMNS) & ~_lacks_media(bundle, items, rows)


def channels_of(bundle: ServableBundle, items: pl.DataFrame) -> dict[str, Embedded]:
    """The channels of m items of the bundle, in its content space; none where it has no content space."""
    if bundle.content is None:
        return {}
    rows = _rows(bundle, items)
    return {
        name: Embedded(bundle.content.space, channel.vectors[rows], channel.present[rows])
        for name, channel in bundle.content.channels.items()
    }


def _rows(bundle: ServableBundle, items: pl.DataFrame) -> Ints:
    return bundle.catalog.ids.rows(items.get_column(ITEM).to_list())


def _same(bundle: ServableBundle, items: pl.DataFrame, rows: Ints, names: "list[str] | tuple[str, ...]") -> Bools:
    """(m,) bool: items of rows (m,) that the bundle has with the same values in these columns."""
    same, known, frame = np.zeros(len(items), dtype=np.bool_), np.flatnonzero(rows >= 0), bundle.catalog.frame
    if not len(known):
        return same
    kinds = {name: frame.schema.get(name, items.schema.get(name, pl.String())) for name in names}
    null = pl.lit(None)
    old = frame[rows[known]].select(
        (pl.col(n) if n in frame.columns else null.cast(k)).alias(n) for n, k in kinds.items()
    )
    new = items[known].select(as_type(items, name, kind) for name, kind in kinds.items())
    equal = pl.select(pl.all_horizontal(old[name].eq_missing(new[name]) for name in names)).to_series()
    same[known] = equal.to_numpy()
    return same


def _lacks_media(bundle: ServableBundle, items: pl.DataFrame, rows: Ints) -> Bools:
    """(m,) bool: items of the bundle with media, of which it has media channels and no media vector."""
    lacks, known = np.zeros(len(items), dtype=np.bool_), np.flatnonzero(rows >= 0)
    channels = {} if bundle.content is None else bundle.content.channels
    media = [channel for name, channel in channels.items() if name not in (TEXT_CHANNEL, TITLE_CHANNEL)]
    if media and len(known):
        has_media = items.select(pl.any_horizontal(pl.col(IMAGE, AUDIO, VIDEO).is_not_null())).to_series().to_numpy()
        lacks[known] = has_media[known] & ~np.any([channel.present[rows[known]] for channel in media], axis=0)
    return lacks
