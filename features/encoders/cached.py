"""A cache of encoded texts."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encoders.text import Words
from features.spaces import Floats, Progress, SpaceKey


def encode_cached(
    texts: Sequence[str],
    space: SpaceKey,
    load: Callable[[], Words],
    cache: Path,
    progress: Callable[[int], Progress] | None = None,
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Vectors (n, d) of texts and whether there was a text (n,); "" gives a zero row.

    progress(n) is called when n texts have to be encoded, and gives what is called with the size of each step.
    Only texts never encoded in this space are computed, and only then is the encoder loaded. The cache is one
    parquet file a space, keyed by the SHA-256 of the text, replaced in one step.
    """
    has = np.array([bool(t) for t in texts], dtype=np.bool_)
    keys = pl.Series("key", [hashlib.sha256(t.encode()).hexdigest() for t in texts], dtype=pl.String)
    file = cache / (hashlib.sha256(str(space).encode()).hexdigest()[:16] + ".parquet")
    vector = pl.Array(pl.Float32, space.dimension)
    known = pl.read_parquet(file) if file.exists() else pl.DataFrame(schema={"key": pl.String, "vector": vector})
    wanted = pl.DataFrame({"key": keys, "text": pl.Series(texts, dtype=pl.String)}).filter(pl.col("text") != "")
    missing = wanted.unique("key", maintain_order=True).join(known, on="key", how="anti", maintain_order="left")
    if len(missing):
        made = load()(missing.get_column("text").to_list())
        known = pl.concat(
            [known, pl.DataFrame({"key": missing.get_column("key"), "vector": pl.Series(made, dtype=vector)})]
        )
        cache.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        known.write_parquet(part)
        part.replace(file)
    found = pl.DataFrame({"key": keys}).join(known, on="key", how="left", maintain_order="left").get_column("vector")
    out = np.zeros((len(texts), space.dimension), dtype=np.float32)
    if has.any():
        out[has] = found.filter(pl.Series(has)).to_numpy()
    return out, has
