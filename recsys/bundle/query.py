"""A single search in a bundle, which opens the encoders and closes them again."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Content
from features.errors import ConfigError
from features.schema import TITLE
from recsys.bundle.model import Bundle
from recsys.content.query_encoding import EncoderSetup, QueryEncoder, searchable


@dataclass(frozen=True)
class SearchResult:
    """The result of a query.

    read: whether any part of the query was read; failed: (kind of part, reason) of the others; items: best first,
    each with item_id, title, score, and near: channel -> cosine, None where the item has no such channel.
    """

    read: bool
    failed: list[tuple[str, str]]
    items: list[dict[str, Any]]

    def render(self) -> "Table":
        """As a table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        channels = list(self.items[0]["near"]) if self.items else []
        table = Table("item", "title", "score", *channels)
        for item in self.items:
            cosines = ["" if item["near"][name] is None else f"{item['near'][name]:.3f}" for name in channels]
            table.add_row(
                Text(item["item_id"]), Text(item["title"] or item["item_id"]), f"{item['score']:.3f}", *cosines
            )
        return table


def search_bundle(bundle: Bundle, content: Content, k: int) -> SearchResult:
    """The k items of a bundle nearest to a content. Opens the encoders and closes them again.

    Raises ConfigError when the bundle has no contents.
    """
    encoding, space = EncoderSetup.of(bundle.manifest), bundle.content
    if encoding is None or space is None:
        raise ConfigError(f"{bundle.path}: the bundle has no contents; train with an encoder")
    with DecoderPool() as decoders:
        query = QueryEncoder(space, encoding.open(decoders)).embed(content)
    failed = [(str(content.parts[each.part].modality), each.reason) for each in query.failures]
    if not query.present[0]:
        return SearchResult(False, failed, [])
    found = bundle.search(query.vectors, k, allow=searchable(bundle.catalog))
    rows = found.rows[0][found.rows[0] >= 0]
    near = space.near_query(query.vectors[0], rows)
    items = [
        {
            "item_id": bundle.catalog.ids.ids[row],
            "title": bundle.catalog.frame.get_column(TITLE)[row],
            "score": score,
            "near": {name: cosines[at] for name, cosines in near.items()},
        }
        for at, (row, score) in enumerate(zip(rows.tolist(), found.scores[0].tolist(), strict=False))
    ]
    return SearchResult(True, failed, items)
