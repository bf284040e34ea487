"""The embedding job: embeds the contents of a catalogue that are not cached, encoder by encoder and shard by shard.

A run that is killed loses only the shard in progress. Each encoder decides how it overlaps decoding and computation.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import polars as pl

from features.arrays import Bools, Ints
from features.catalog import item_texts
from features.content.digests import FileDigests, Reading, digests, parts_read
from features.content.parts import Audio, Content, Image, Limits, Part, Source, Text, Video
from features.content.spaces import Embedded, Encoder, Failure, SpaceKey
from features.content.vector_cache import VectorCache, cache_folder
from features.errors import StoreError, describe_os_error
from features.progress import StartProgress, Step
from features.schema import AUDIO, CATEGORIES, DESCRIPTION, IMAGE, TITLE, VIDEO

FILES, FAILED = "files.sqlite", "failed.parquet"

CONTENT_COLUMNS = (TITLE, CATEGORIES, DESCRIPTION, IMAGE, AUDIO, VIDEO)
"""Columns of the items that encoders read."""

CONTENTS_AT_ONCE = 1024
"""Contents in one block of digests; the index of files is written after each block."""

SHOWN_FAILURES = 5
"""Maximum number of failures in a report; the table of failures has all of them."""


@dataclass(frozen=True)
class EncoderReport:
    """Result of a run for one encoder.

    contents: number of contents; readable: those with a part that the encoder reads; cached: the readable ones that
    were in the cache before; computed: embedded and stored in this run, equal contents counted once; changed:
    embedded but not stored, since a file changed in the meantime; failed: parts of the catalogue that could not be
    read, in this run or before; first: the first of these, by row of the content and position in it; damaged:
    rejected shards; seconds: time of embedding.
    """

    encoder: str
    space: SpaceKey
    contents: int
    readable: int
    cached: int
    computed: int
    changed: int
    failed: int
    first: tuple[Failure, ...]
    damaged: tuple[Path, ...]
    seconds: float

    @property
    def per_second(self) -> float:
        """Contents embedded per second."""
        return (self.computed + self.changed) / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class EmbedReport:
    """Result of a run. seconds: time to compute digests; failures: path of a table of encoder, row, part, reason."""

    encoders: tuple[EncoderReport, ...]
    seconds: float
    failures: Path


def item_contents(items: pl.DataFrame, root: Path) -> list[Content]:
    """Content of each item: text, image, audio and video. Relative paths are resolved against `root`."""
    columns: list[list[Part | None]] = [[Text(text) if text else None for text in item_texts(items)]]
    for name, kind in ((IMAGE, Image), (AUDIO, Audio), (VIDEO, Video)):
        if name in items.columns:
            columns.append([kind(_source(value, root)) if value else None for value in items.get_column(name)])
    return [Content(tuple(part for part in row if part is not None)) for row in zip(*columns, strict=True)]


def item_titles(items: pl.DataFrame) -> list[Content]:
    """The title of each item whose text has more than the title; empty for others, which would repeat their text."""
    rows = zip(items.get_column(TITLE), item_texts(items), strict=True)
    return [Content((Text(title),)) if title and title != text else Content() for title, text in rows]


def embed(
    contents: Sequence[Content],
    encoders: Mapping[str, Encoder],
    cache: Path,
    *,
    limits: Limits,
    shard: int = 512,
    retry: bool = False,
    refetch: bool = False,
    progress: StartProgress | None = None,
) -> EmbedReport:
    """Embed the contents that the cache lacks. `contents` is indexed lazily; a batch has `shard` of them.

    retry: embed contents with failures again, e.g. after a server was down or the limits were raised; refetch: embed
    contents with URLs again. Raises StoreError and SpaceError; shards that were finished before are kept.
    """
    started = perf_counter()
    with closing(FileDigests(cache / FILES, limits)) as files:
        step = progress("files and texts", len(contents)) if progress else None
        readings = {name: _reading(encoder) for name, encoder in encoders.items()}
        digests_by_reading = _identify(contents, set(readings.values()), files, step)
        seconds = perf_counter() - started
        reports, failed = [], []
        for name, encoder in encoders.items():
            job = _Job(name, encoder, contents, digests_by_reading[readings[name]], files, cache)
            report, failures = job.run(shard, retry, refetch, progress)
            reports.append(report)
            failed += [(name, failure.row, failure.part, failure.reason) for failure in failures]
    _write_failed(failed, cache / FAILED)
    return EmbedReport(tuple(reports), seconds, cache / FAILED)


def cached_vectors(contents: Sequence[Content], encoder: Encoder, cache: Path, *, limits: Limits) -> Embedded:
    """The cached vectors of contents for one encoder, row by row.

    Raises StoreError when a shard is damaged.
    """
    space, reading = encoder.space(), _reading(encoder)
    with closing(FileDigests(cache / FILES, limits)) as files:
        content_digests = _identify(contents, {reading}, files)[reading]
    cached = VectorCache(cache_folder(cache, space), space).get(content_digests)
    return replace(cached, failures=_in_content(cached.failures, contents, reading))


@dataclass(frozen=True)
class _Job:
    """One encoder over n contents. digests: (n,) digests of the parts that it reads."""

    name: str
    encoder: Encoder
    contents: Sequence[Content]
    digests: pl.Series
    files: FileDigests
    cache: Path

    def run(
        self, shard: int, retry: bool, refetch: bool, progress: StartProgress | None
    ) -> tuple[EncoderReport, tuple[Failure, ...]]:
        space, content_digests = self.encoder.space(), self.digests
        vectors = VectorCache(cache_folder(self.cache, space), space)
        idle = not (retry or refetch) and self._complete(vectors)
        with nullcontext() if idle else vectors.writing():  # only one run over a cache may write
            known = vectors.known(content_digests)
            if retry:
                known[[failure.row for failure in vectors.failures(content_digests)]] = False
            if refetch:
                known &= ~self._has_url()
            rows = self._first_rows(~known)
            step = progress(f"embed {self.name}", len(rows)) if progress and len(rows) else None
            started = perf_counter()
            computed = sum(self._shard(rows[at : at + shard], vectors, step) for at in range(0, len(rows), shard))
            seconds = perf_counter() - started
            failures = _in_content(vectors.failures(content_digests), self.contents, _reading(self.encoder))
        report = EncoderReport(
            encoder=self.name,
            space=space,
            contents=len(self.contents),
            readable=len(content_digests) - content_digests.null_count(),
            cached=int(known.sum()),
            computed=computed,
            changed=len(rows) - computed,
            failed=len(failures),
            first=failures[:SHOWN_FAILURES],
            damaged=vectors.damaged,
            seconds=seconds,
        )
        return report, failures

    def _complete(self, vectors: VectorCache) -> bool:
        """Whether the cache has every content."""
        try:
            return len(self._first_rows(~vectors.known(self.digests))) == 0
        except StoreError:  # a damaged shard: its vectors are computed again
            return False

    def _first_rows(self, mask: Bools) -> Ints:
        """Rows of the masked contents that have a digest; of equal digests, the first row only."""
        table = pl.DataFrame({"digest": self.digests, "mask": mask}).with_row_index("row")
        first = table.filter("mask").drop_nulls("digest").unique("digest", keep="first", maintain_order=True)
        return first.get_column("row").cast(pl.Int64).to_numpy()

    def _has_url(self) -> Bools:
        """Contents (n,) with a URL among the parts that the encoder reads."""
        modalities = self.encoder.modalities
        sources = ([getattr(c.parts[at], "source", None) for at in parts_read(c, modalities)] for c in self.contents)
        return np.array([any(isinstance(source, str) for source in row) for row in sources], dtype=np.bool_)

    def _shard(self, rows: Ints, vectors: VectorCache, step: Step | None) -> int:
        """Embed rows and store them; returns how many were stored. Contents whose files have changed are not."""
        batch = [self.contents[row] for row in rows]
        embedded = self.encoder.encode(batch, progress=step)
        before, reading = self.digests[rows], _reading(self.encoder)
        unchanged = digests(batch, [reading], self.files)[reading].eq_missing(before).to_numpy()
        new_row = np.cumsum(unchanged) - 1  # (len(rows),): row in the batch -> row among the unchanged
        failures = [
            Failure(int(new_row[f.row]), parts_read(batch[f.row], reading.modalities).index(f.part), f.reason)
            for f in embedded.failures
            if unchanged[f.row]
        ]
        kept = Embedded(embedded.space, embedded.vectors[unchanged], embedded.present[unchanged], tuple(failures))
        vectors.append(before.filter(pl.Series(unchanged)), kept)
        return int(unchanged.sum())


def _reading(encoder: Encoder) -> Reading:
    return Reading(encoder.modalities, encoder.reader)


def _identify(
    contents: Sequence[Content], readings: Collection[Reading], files: FileDigests, step: Step | None = None
) -> dict[Reading, pl.Series]:
    """Digests (n,) of all contents for each reading."""
    blocks = {reading: [pl.Series("digest", [], dtype=pl.Binary)] for reading in readings}
    for start in range(0, len(contents), CONTENTS_AT_ONCE):
        block = [contents[row] for row in range(start, min(start + CONTENTS_AT_ONCE, len(contents)))]
        for reading, block_digests in digests(block, readings, files).items():
            blocks[reading].append(block_digests)
        if step:
            step(len(block))
    return {reading: pl.concat(series, rechunk=True) for reading, series in blocks.items()}


def _in_content(failures: Sequence[Failure], contents: Sequence[Content], reading: Reading) -> tuple[Failure, ...]:
    """Failures with `part` as a position in the content; the cache numbers only the parts that the encoder reads."""
    return tuple(replace(f, part=parts_read(contents[f.row], reading.modalities)[f.part]) for f in failures)


def _source(value: str, root: Path) -> Source:
    return value if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value) else root / value


def _write_failed(failed: list[tuple[str, int, int, str]], path: Path) -> None:
    schema = {"encoder": pl.String, "row": pl.Int64, "part": pl.Int32, "reason": pl.String}
    partial = path.with_suffix(".writing")
    try:
        pl.DataFrame(failed, schema=schema, orient="row").write_parquet(partial)
        partial.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path}: the failures cannot be written: {describe_os_error(error)}; the vectors are stored"
        ) from error
