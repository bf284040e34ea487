"""Retrieval across kinds of content in the shared space: photographs, written captions and spoken captions.

The data are a folder with images/, captions.csv (image, caption) and audio/NAME.ogg, one spoken caption of each
photograph. There are five folds by photograph. For each fold, everything is fitted and chosen on the other four, and
the fold is the pool that is searched. The reference is a closed form: ridge regression from each encoder into the
text encoder's space.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge

from experiments.bench.runner import Bar, Result
from experiments.evaluation.ranking import interval_dict
from features.arrays import Doubles, Floats, Ints
from features.content.embed import cached_vectors, embed
from features.content.encoder_config import builtin_encoders
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Audio, Content, Image, Limits, Text
from features.content.spaces import Embedded, Encoder, SpaceKey, unit
from features.errors import ConfigError, SourceError
from features.tables.scan import reading, scan_csv
from recsys.config import AlignmentConfig
from recsys.content.alignment import Views
from recsys.content.alignment_training import fit_alignment
from recsys.evaluation.bootstrap import bootstrap, paired_bootstrap

FOLDS, SEED, CUT = 5, 0, 64
CACHE = Path("data/cache")

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridge penalties, in units of the mean squared length of the centred vectors."""

DIRECTIONS = ("text to image", "image to text", "speech to text", "speech to image", "text+speech to image")


@dataclass(frozen=True)
class CaptionedImages:
    """n photographs: image (n, di), captions text (n, c, dt), the spoken caption speech (n, ds); all unit rows."""

    text: Floats
    image: Floats
    speech: Floats
    spaces: dict[str, SpaceKey]

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: Ints) -> "CaptionedImages":
        """The photographs of these rows."""
        return CaptionedImages(self.text[rows], self.image[rows], self.speech[rows], self.spaces)


@dataclass(frozen=True)
class AlignedVectors:
    """Photographs in one space: text (n, c, d), image (n, d), speech (n, d), unit rows."""

    text: Floats
    image: Floats
    speech: Floats


def run(*, short: bool = False, data: str | None = None, train: str | None = None, test: str | None = None) -> Result:
    """R@1 and R@10 in every direction, of the alignment and of ridge, and their paired differences over photographs.

    data: a folder, cross-validated; or train and test: fitted on one folder, judged on the other. short: one fold.
    Raises ConfigError when neither data, nor both train and test are given.
    """
    if (data is None) == (train is None) or (train is None) != (test is None):
        raise ConfigError("bench alignment needs --data DIR, or --train DIR --test DIR")
    full_runs: list[dict[str, Doubles]] = []
    cut_runs: list[dict[str, Doubles]] = []
    ridge_runs: list[dict[str, Doubles]] = []
    for fit, held in _folds(data, train, test, short):
        project = _aligned(fit)
        full_runs.append(ranks(project(held, None)))
        cut_runs.append(ranks(project(held, CUT)))
        ridge_runs.append(_ridge(fit, held))
    figures: dict[str, Any] = {
        "photographs": sum(len(fold["speech to image"]) for fold in full_runs),
        "folds": len(full_runs),
    }
    bars: list[Bar] = []
    hits = {}
    for direction in DIRECTIONS:
        full, cut, ridge = (
            np.concatenate([fold[direction] for fold in runs]) for runs in (full_runs, cut_runs, ridge_runs)
        )
        for k in (1, 10):
            ours, reference = _hits(full, k), _hits(ridge, k)
            hits[direction, k] = ours
            figures[f"{direction} R@{k}"] = interval_dict(bootstrap(ours, seed=SEED))
            figures[f"{direction} R@{k} ridge"] = interval_dict(bootstrap(reference, seed=SEED))
            difference = paired_bootstrap(ours, reference, seed=SEED)
            figures[f"{direction} R@{k} ours minus ridge"] = interval_dict(difference)
            bars.append(Bar(f"{direction} R@{k}: low end of ours minus ridge", difference.low, ">", 0.0))
        kept = float(_hits(cut, 10).mean() / _hits(full, 10).mean())
        figures[f"{direction} R@10 at {CUT} dimensions"] = round(float(_hits(cut, 10).mean()), 4)
        bars.append(Bar(f"{direction} R@10 kept at {CUT} dimensions", kept, ">=", 0.97))
    mixed = "text+speech to image"
    for single in ("text to image", "speech to image"):
        for k in (1, 10):
            difference = paired_bootstrap(hits[mixed, k], hits[single, k], seed=SEED)
            figures[f"{mixed} minus {single} R@{k}"] = interval_dict(difference)
            bars.append(Bar(f"{mixed} R@{k}: low end of what it adds to {single}", difference.low, ">", 0.0))
    return Result(figures, bars)


def _folds(
    data: str | None, train: str | None, test: str | None, short: bool
) -> list[tuple[CaptionedImages, CaptionedImages]]:
    """Pairs of photographs to fit on and photographs to judge on."""
    if data is None:
        return [(read(Path(str(train))), read(Path(str(test))))]
    photographs = read(Path(data))
    folds = np.array_split(np.random.default_rng(SEED).permutation(len(photographs)), FOLDS)
    rest = [np.concatenate([f for j, f in enumerate(folds) if j != i]) for i in range(FOLDS)]
    pairs = zip(rest, folds, strict=True)
    return [(photographs.take(fit), photographs.take(held)) for fit, held in pairs][: 1 if short else None]


def read(folder: Path) -> CaptionedImages:
    """The encoded photographs of a folder; vectors in the cache are not computed again.

    Raises SourceError when the folder has another layout than the one above, or when a file cannot be read.
    """
    table = folder / "captions.csv"
    if not table.is_file():
        raise SourceError(f"{folder}: no captions.csv; add captions.csv (image, caption), images/ and audio/")
    with reading(str(table)):
        captions = scan_csv(table).group_by("image", maintain_order=True).agg("caption").collect()
    counts = captions.get_column("caption").list.len()
    if counts.n_unique() != 1:
        raise SourceError(f"{table}: photographs have {sorted(counts.unique())} captions; give each the same number")
    names = captions.get_column("image").to_list()
    limits = Limits()
    with DecoderPool(1) as decoders:
        encoders = builtin_encoders(decoders, limits, CACHE / "models")
        texts = [Content.of(Text(text)) for text in captions.explode("caption").get_column("caption")]
        text = _vectors(texts, "text", encoders["text"], limits)
        image = _vectors(
            [Content.of(Image(folder / "images" / name)) for name in names], "image", encoders["image"], limits
        )
        spoken = [Content.of(Audio(folder / "audio" / Path(name).with_suffix(".ogg"))) for name in names]
        speech = _vectors(spoken, "speech", encoders["speech"], limits)
    shape = (len(names), counts[0], text.vectors.shape[1])
    spaces = {"text": text.space, "image": image.space, "speech": speech.space}
    return CaptionedImages(text.vectors.reshape(shape), image.vectors, speech.vectors, spaces)


def _vectors(contents: list[Content], name: str, encoder: Encoder, limits: Limits) -> Embedded:
    """Vectors of contents, in their order. Raises SourceError when one of them cannot be read."""
    embed(contents, {name: encoder}, CACHE, limits=limits)
    embedded = cached_vectors(contents, encoder, CACHE, limits=limits)
    if embedded.failures:
        first = embedded.failures[0].reason
        raise SourceError(f"{len(embedded.failures)} {name} files cannot be read, the first because: {first}")
    return embedded


def _aligned(fit: CaptionedImages) -> Callable[[CaptionedImages, int | None], AlignedVectors]:
    """Fits the alignment on photographs; returns the function (photographs, dimensions) -> their unit vectors."""
    rows = np.arange(len(fit))
    channels = {
        "text": Views(
            fit.spaces["text"], np.repeat(rows, fit.text.shape[1]), fit.text.reshape(-1, fit.text.shape[2])
        ),
        "image": Views(fit.spaces["image"], rows, fit.image),
        "speech": Views(fit.spaces["speech"], rows, fit.speech),
    }
    maps = fit_alignment(channels, len(fit), AlignmentConfig(), seed=SEED).alignment.maps

    def project(photographs: CaptionedImages, dimension: int | None) -> AlignedVectors:
        def mapped(kind: str, x: Floats) -> Floats:
            return unit(maps[photographs.spaces[kind]](x.reshape(-1, x.shape[-1]))[:, :dimension])

        text = mapped("text", photographs.text).reshape(*photographs.text.shape[:2], -1)  # (n, c, d)
        return AlignedVectors(text, mapped("image", photographs.image), mapped("speech", photographs.speech))

    return project


def _ridge(fit: CaptionedImages, held: CaptionedImages) -> dict[str, Doubles]:
    """Ranks by ridge on `held`. The penalties are chosen for each direction by mean reciprocal rank within `fit`."""
    inner = np.array_split(np.random.default_rng(SEED).permutation(len(fit)), 4)
    scores = {(i, s, d): 0.0 for i in STRENGTHS for s in STRENGTHS for d in DIRECTIONS}
    for i, part in enumerate(inner):  # part: rows of the inner fold that is judged
        rest = np.concatenate([p for j, p in enumerate(inner) if j != i])
        image = {s: _regress(fit.image[rest], fit.text[rest], fit.image[part], s) for s in STRENGTHS}
        speech = {s: _regress(fit.speech[rest], fit.text[rest], fit.speech[part], s) for s in STRENGTHS}
        for a in STRENGTHS:
            for b in STRENGTHS:
                for direction, rank in ranks(AlignedVectors(fit.text[part], image[a], speech[b])).items():
                    scores[a, b, direction] += float((1 / rank).mean())
    out = {}
    for direction in DIRECTIONS:
        a, b, _ = max((key for key in scores if key[2] == direction), key=lambda key: scores[key])
        predicted_image = _regress(fit.image, fit.text, held.image, a)
        predicted_speech = _regress(fit.speech, fit.text, held.speech, b)
        out[direction] = ranks(AlignedVectors(held.text, predicted_image, predicted_speech))[direction]
    return out


def _regress(x: Floats, text: Floats, queries: Floats, strength: float) -> Floats:
    """Unit rows (k, dt) for queries (k, d), by ridge from x (n, d) to the mean over c of text (n, c, dt)."""
    penalty = strength * float(((x - x.mean(0)) ** 2).sum(1).mean())
    return unit(Ridge(alpha=penalty).fit(x, text.mean(1)).predict(queries).astype(np.float32))


def ranks(placed: AlignedVectors) -> dict[str, Doubles]:
    """Mid-ranks of the right answers by direction: (n, c) where captions are the queries, (n,) where photographs are.

    In a search for text, any caption of the photograph is right: the best of them is ranked among the captions of all
    other photographs.
    """
    n, c, d = placed.text.shape
    texts = placed.text.reshape(n * c, d)
    mixed = unit(texts + np.repeat(placed.speech, c, axis=0))  # (n * c, d)
    own = np.repeat(np.arange(n), c)
    return {
        "text to image": _rank(texts @ placed.image.T, own).reshape(n, c),
        "image to text": _best(placed.image @ texts.T, c),
        "speech to text": _best(placed.speech @ texts.T, c),
        "speech to image": _rank(placed.speech @ placed.image.T, np.arange(n)),
        "text+speech to image": _rank(mixed @ placed.image.T, own).reshape(n, c),
    }


def _rank(scores: Floats, own: Ints) -> Doubles:
    """Mid-rank (q,) of column own (q,) in each row of scores (q, n)."""
    target = scores[np.arange(len(scores)), own][:, None]  # (q, 1)
    above, level = (scores > target).sum(1), (scores == target).sum(1)
    return np.asarray(above + (1 + level) / 2)


def _best(scores: Floats, c: int) -> Doubles:
    """Mid-rank (n,) of each row's best own caption among itself and all captions of other rows; scores (n, n * c)."""
    n = len(scores)
    by_photograph = scores.reshape(n, n, c)
    target = by_photograph[np.arange(n), np.arange(n)].max(1)[:, None, None]  # (n, 1, 1)
    by_photograph = by_photograph.copy()
    by_photograph[np.arange(n), np.arange(n)] = -np.inf
    above, level = (by_photograph > target).sum((1, 2)), (by_photograph == target).sum((1, 2))
    return np.asarray(above + 1 + level / 2)


def _hits(rank: Doubles, k: int) -> Doubles:
    """Share (n,) of a photograph's queries with a rank of k or better; rank (n, c) or (n,)."""
    return np.asarray((rank.reshape(len(rank), -1) <= k).mean(1))
