"""FAISS behind `Retriever`: exact inner product. The only file that imports faiss."""

from importlib import metadata
from pathlib import Path

import numpy as np

from features.errors import BundleError, DependencyError
from features.interactions import Bools, Ragged
from recsys.candidates import Candidates, Floats


def check_faiss() -> None:
    """Exactly one faiss wheel must be installed: faiss-cpu and faiss-gpu overwrite each other's folder.

    Raises DependencyError saying what to install or remove.
    """
    wheels = [name for name in ("faiss-cpu", "faiss-gpu") if any(metadata.distributions(name=name))]
    if not wheels:
        raise DependencyError("no faiss is installed: pip install 'recsys[cpu]' (or 'recsys[gpu]' with CUDA 12.6+)")
    if len(wheels) > 1:
        raise DependencyError(
            "faiss-cpu and faiss-gpu are both installed and overwrite each other: "
            "pip uninstall -y faiss-cpu faiss-gpu, then pip install 'recsys[cpu]' or 'recsys[gpu]'"
        )


check_faiss()
import faiss  # noqa: E402  (the check explains what an ImportError here would not)


class ExactIndex:
    """Exact search by inner product over unit vectors (n, d): the oracle of every other kind."""

    def __init__(self, vectors: Floats) -> None:
        """Index of vectors (n, d) float32. Raises ValueError when they are not finite."""
        if not np.isfinite(vectors).all():
            raise ValueError(f"{(~np.isfinite(vectors)).any(1).sum()} of {len(vectors)} vectors are not finite")
        self._index: faiss.Index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """Length of vectors and queries."""
        return int(self._index.d)

    @property
    def vectors(self) -> Floats:
        """(n, d) float32, as they are in the index."""
        stored: Floats = self._index.reconstruct_n(0, len(self))
        return stored

    def search(
        self, queries: Floats, k: int, *, allow: Bools | None = None, exclude: Ragged | None = None
    ) -> Candidates:
        """See `Retriever`. Excluded items are searched past: each query asks for as many more as it excludes.

        Raises ValueError on queries that are not finite (faiss would answer -1 without a word).
        """
        if not np.isfinite(queries).all():
            raise ValueError("queries must be finite")
        extra = int(exclude.lengths.max(initial=0)) if exclude is not None else 0
        deep = min(k + extra, len(self))
        parameters = None
        if allow is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(allow, bitorder="little"))  # type: ignore[call-arg,arg-type]
            parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        scores, rows = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), deep, params=parameters)
        if exclude is not None:
            hit = exclude.mask(len(self))
            scores[(rows < 0) | hit[np.arange(len(rows))[:, None], rows]] = -np.inf
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        scores[rows < 0] = -np.inf
        rows[np.isneginf(scores)] = -1
        pad = ((0, 0), (0, k - scores.shape[1]))
        return Candidates(
            np.pad(rows, pad, constant_values=-1).astype(np.int64), np.pad(scores, pad, constant_values=-np.inf)
        )

    def save(self, path: Path) -> None:
        """Write the index in faiss's own format."""
        faiss.write_index(self._index, str(path))

    @classmethod
    def load(cls, path: Path) -> "ExactIndex":
        """Read what `save` wrote. Raises BundleError when faiss cannot; verify a checksum before (faiss does not)."""
        self = cls.__new__(cls)
        try:
            self._index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise BundleError(f"{path}: faiss cannot read this index: {error}") from error
        return self
