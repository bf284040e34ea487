"""The embedding job: what of a catalogue is not in the cache yet, through each encoder, kept shard by shard.

A run that is killed loses the shard it was at. Decoding while computing is each encoder's own affair.
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
from features.errors import StoreError
from features.progress import StartProgress, Step
from features.schema import AUDIO, IMAGE, TITLE, VIDEO

FILES, FAILED = "files.sqlite", "failed.parquet"

CONTENTS_AT_ONCE = 1024
"""Contents identified at once; after each block the index of files is on disk."""

SHOWN_FAILURES = 5
"""Failures that a report shows; the table has all."""


@dataclass(frozen=True)
class EncoderReport:
    """What a run did for one encoder.

    contents: all of them; readable: those with a part that it reads; cached: of these, known before; computed:
    embedded in this run, each once however often it occurs; changed: embedded, but not kept, since a file changed
    meanwhile; failed: parts of the catalogue that could not be read, in this run or before, first: some of them,
    by row of the content and place in it; damaged: shards set aside; seconds: of embedding.
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
        """Contents embedded in a second."""
        return (self.computed + self.changed) / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class EmbedReport:
    """What a run did. seconds: of finding out what contents are; failures: table of encoder, row, part, reason."""

    encoders: tuple[EncoderReport, ...]
    seconds: float
    failures: Path


def item_contents(items: pl.DataFrame, root: Path) -> list[Content]:
    """What is known of each item: its words, picture, sound and video. Relative paths start from root."""
    columns: list[list[Part | None]] = [[Text(text) if text else None for text in item_texts(items)]]
    for name, kind in ((IMAGE, Image), (AUDIO, Audio), (VIDEO, Video)):
        if name in items.columns:
            columns.append([kind(_source(value, root)) if value else None for value in items.get_column(name)])
    return [Content(tuple(part for part in row if part is not None)) for row in zip(*columns, strict=True)]


def item_titles(items: pl.DataFrame) -> list[Content]:
    """The title of each item whose text says more than that; the others' would be told twice."""
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
    """Compute what the cache lacks. Contents are taken one by one as they are needed, `shard` of them at a time.

    retry: try again what could not be read, e.g. since a server was away or the limits were lower; refetch: embed
    again what is behind URLs. Raises StoreError and SpaceError; what was finished before is kept.
    """
    began = perf_counter()
    with closing(FileDigests(cache / FILES, limits)) as files:
        step = progress("files and texts", len(contents)) if progress else None
        readings = {name: _reading(encoder) for name, encoder in encoders.items()}
        named = _identify(contents, set(readings.values()), files, step)
        seconds = perf_counter() - began
        reports, failed = [], []
        for name, encoder in encoders.items():
            job = _Job(name, encoder, contents, named[readings[name]], files, cache)
            report, failures = job.run(shard, retry, refetch, progress)
            reports.append(report)
            failed += [(name, failure.row, failure.part, failure.reason) for failure in failures]
    _write_failed(failed, cache / FAILED)
    return EmbedReport(tuple(reports), seconds, cache / FAILED)


def cached_vectors(contents: Sequence[Content], encoder: Encoder, cache: Path, *, limits: Limits) -> Embedded:
    """What the cache has of an encoder's vectors of contents, row by row.

    Raises StoreError when a shard is damaged.
    """
    space, reading = encoder.space(), _reading(encoder)
    with closing(FileDigests(cache / FILES, limits)) as files:
        named = _identify(contents, {reading}, files)[reading]
    found = VectorCache(cache_folder(cache, space), space).get(named)
    return replace(found, failures=_placed(found.failures, contents, reading))


@dataclass(frozen=True)
class _Job:
    """One encoder over n contents. named: (n,) digests of what it reads of them."""

    name: str
    encoder: Encoder
    contents: Sequence[Content]
    named: pl.Series
    files: FileDigests
    cache: Path

    def run(
        self, shard: int, retry: bool, refetch: bool, progress: StartProgress | None
    ) -> tuple[EncoderReport, tuple[Failure, ...]]:
        space, named = self.encoder.space(), self.named
        vectors = VectorCache(cache_folder(self.cache, space), space)
        idle = not (retry or refetch) and self._all_there(vectors)
        with nullcontext() if idle else vectors.writing():  # of several runs over one cache only one may write
            known = vectors.known(named)
            if retry:
                known[[failure.row for failure in vectors.failures(named)]] = False
            if refetch:
                known &= ~self._from_urls()
            rows = self._first_of(~known)
            step = progress(f"embed {self.name}", len(rows)) if progress and len(rows) else None
            began = perf_counter()
            computed = sum(self._shard(rows[at : at + shard], vectors, step) for at in range(0, len(rows), shard))
            seconds = perf_counter() - began
            failures = _placed(vectors.failures(named), self.contents, _reading(self.encoder))
        report = EncoderReport(
            encoder=self.name,
            space=space,
            contents=len(self.contents),
            readable=len(named) - named.null_count(),
            cached=int(known.sum()),
            computed=computed,
            changed=len(rows) - computed,
            failed=len(failures),
            first=failures[:SHOWN_FAILURES],
            damaged=vectors.damaged,
            seconds=seconds,
        )
        return report, failures

    def _all_there(self, vectors: VectorCache) -> bool:
        try:
            return len(self._first_of(~vectors.known(self.named))) == 0
        except StoreError:  # a damaged shard: what it held is computed again
            return False

    def _first_of(self, wanted: Bools) -> Ints:
        """Rows of wanted contents that say something, the first of those that say the same."""
        table = pl.DataFrame({"digest": self.named, "wanted": wanted}).with_row_index("row")
        first = table.filter("wanted").drop_nulls("digest").unique("digest", keep="first", maintain_order=True)
        return first.get_column("row").cast(pl.Int64).to_numpy()

    def _from_urls(self) -> Bools:
        modalities = self.encoder.modalities
        sources = ([getattr(c.parts[at], "source", None) for at in parts_read(c, modalities)] for c in self.contents)
        return np.array([any(isinstance(source, str) for source in of_one) for of_one in sources], dtype=np.bool_)

    def _shard(self, rows: Ints, vectors: VectorCache, step: Step | None) -> int:
        """Embed rows and keep them, and say how many: those whose files are still what they were."""
        batch = [self.contents[row] for row in rows]
        embedded = self.encoder.encode(batch, progress=step)
        before, reading = self.named[rows], _reading(self.encoder)
        same = digests(batch, [reading], self.files)[reading].eq_missing(before).to_numpy()
        place = np.cumsum(same) - 1
        failures = [
            Failure(int(place[f.row]), parts_read(batch[f.row], reading.modalities).index(f.part), f.reason)
            for f in embedded.failures
            if same[f.row]
        ]
        kept = Embedded(embedded.space, embedded.vectors[same], embedded.present[same], tuple(failures))
        vectors.append(before.filter(pl.Series(same)), kept)
        return int(same.sum())


def _reading(encoder: Encoder) -> Reading:
    return Reading(encoder.modalities, encoder.reader)


def _identify(
    contents: Sequence[Content], readings: Collection[Reading], files: FileDigests, step: Step | None = None
) -> dict[Reading, pl.Series]:
    """Digests (n,) of all contents for each of some readings."""
    named = {reading: [pl.Series("digest", [], dtype=pl.Binary)] for reading in readings}
    for start in range(0, len(contents), CONTENTS_AT_ONCE):
        block = [contents[row] for row in range(start, min(start + CONTENTS_AT_ONCE, len(contents)))]
        for reading, found in digests(block, readings, files).items():
            named[reading].append(found)
        if step:
            step(len(block))
    return {reading: pl.concat(blocks, rechunk=True) for reading, blocks in named.items()}


def _placed(failures: Sequence[Failure], contents: Sequence[Content], reading: Reading) -> tuple[Failure, ...]:
    """Failures by place in the content. The cache counts only parts that are read: others may lie between them."""
    return tuple(replace(f, part=parts_read(contents[f.row], reading.modalities)[f.part]) for f in failures)


def _source(value: str, root: Path) -> Source:
    return value if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value) else root / value


def _write_failed(failed: list[tuple[str, int, int, str]], path: Path) -> None:
    schema = {"encoder": pl.String, "row": pl.Int64, "part": pl.Int32, "reason": pl.String}
    part = path.with_suffix(".writing")
    try:
        pl.DataFrame(failed, schema=schema, orient="row").write_parquet(part)
        part.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: the failures cannot be written: {error}; the vectors are kept") from error
