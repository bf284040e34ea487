"""Whether the shared space finds across kinds of content: photographs, captions written and captions spoken.

A folder with images/, captions.csv (image, caption) and audio/NAME.ogg, one spoken caption of each photograph. Five
folds by photograph; in each, everything is fitted and chosen on the other four, and the fold is the pool. The
reference is the closed form that costs nothing: ridge regression from each encoder into the text encoder's space.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
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
from recsys.config import AlignmentConfig
from recsys.content.alignment import Views
from recsys.content.alignment_training import fit_alignment
from recsys.evaluation.bootstrap import bootstrap, paired_bootstrap

FOLDS, SEED, CUT = 5, 0, 64
CACHE = Path("data/cache")

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Of the ridge penalty, in units of the mean squared length of the centred vectors."""

DIRECTIONS = ("text to image", "image to text", "speech to text", "speech to image", "text+speech to image")


@dataclass(frozen=True)
class Photographs:
    """n photographs: image (n, di), captions text (n, c, dt), one of them spoken (n, ds), all unit rows."""

    text: Floats
    image: Floats
    speech: Floats
    spaces: dict[str, SpaceKey]

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: Ints) -> "Photographs":
        return Photographs(self.text[rows], self.image[rows], self.speech[rows], self.spaces)


@dataclass(frozen=True)
class Placed:
    """Photographs in one space: text (n, c, d), image (n, d), speech (n, d), unit rows."""

    text: Floats
    image: Floats
    speech: Floats


def run(*, short: bool = False, data: str | None = None, train: str | None = None, test: str | None = None) -> Result:
    """R@1 and R@10 in every direction, ours and ridge, and their paired differences over photographs.

    data: a folder, cross-validated; or train and test: fitted on one folder, asked on another. short: one fold.
    """
    if (data is None) == (train is None) or (train is None) != (test is None):
        raise ConfigError("bench alignment needs --data DIR, or --train DIR --test DIR")
    ours: list[dict[str, Doubles]] = []
    cut: list[dict[str, Doubles]] = []
    theirs: list[dict[str, Doubles]] = []
    for fit, held in _parts(data, train, test, short):
        place = _aligned(fit)
        ours.append(ranks(place(held, None)))
        cut.append(ranks(place(held, CUT)))
        theirs.append(_ridge(fit, held))
    figures: dict[str, Any] = {"photographs": sum(len(r["speech to image"]) for r in ours), "folds": len(ours)}
    bars: list[Bar] = []
    values = {}
    for direction in DIRECTIONS:
        mine, small, other = (np.concatenate([part[direction] for part in runs]) for runs in (ours, cut, theirs))
        for k in (1, 10):
            a, b = _hits(mine, k), _hits(other, k)
            values[direction, k] = a
            figures[f"{direction} R@{k}"] = interval_dict(bootstrap(a, seed=SEED))
            figures[f"{direction} R@{k} ridge"] = interval_dict(bootstrap(b, seed=SEED))
            difference = paired_bootstrap(a, b, seed=SEED)
            figures[f"{direction} R@{k} ours minus ridge"] = interval_dict(difference)
            bars.append(Bar(f"{direction} R@{k}: low end of ours minus ridge", difference.low, ">", 0.0))
        kept = float(_hits(small, 10).mean() / _hits(mine, 10).mean())
        figures[f"{direction} R@10 at {CUT} dimensions"] = round(float(_hits(small, 10).mean()), 4)
        bars.append(Bar(f"{direction} R@10 kept at {CUT} dimensions", kept, ">=", 0.97))
    both = "text+speech to image"
    for alone in ("text to image", "speech to image"):
        for k in (1, 10):
            difference = paired_bootstrap(values[both, k], values[alone, k], seed=SEED)
            figures[f"{both} minus {alone} R@{k}"] = interval_dict(difference)
            bars.append(Bar(f"{both} R@{k}: low end of what it adds to {alone}", difference.low, ">", 0.0))
    return Result(figures, bars)


def _parts(
    data: str | None, train: str | None, test: str | None, short: bool
) -> list[tuple[Photographs, Photographs]]:
    if data is None:
        return [(read(Path(str(train))), read(Path(str(test))))]
    all_of = read(Path(data))
    folds = np.array_split(np.random.default_rng(SEED).permutation(len(all_of)), FOLDS)
    rest = [np.concatenate([f for j, f in enumerate(folds) if j != i]) for i in range(FOLDS)]
    return [(all_of.take(r), all_of.take(f)) for r, f in zip(rest, folds, strict=True)][: 1 if short else None]


def read(folder: Path) -> Photographs:
    """Encode a folder, or take its vectors from the cache. Raises SourceError when it is not of the form above."""
    table = folder / "captions.csv"
    if not table.is_file():
        raise SourceError(f"{folder}: no captions.csv; it needs captions.csv (image, caption), images/ and audio/")
    captions = pl.read_csv(table).group_by("image", maintain_order=True).agg("caption")
    counts = captions.get_column("caption").list.len()
    if counts.n_unique() != 1:
        raise SourceError(f"{table}: each photograph needs the same number of captions; there are {counts.unique()}")
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
    return Photographs(text.vectors.reshape(shape), image.vectors, speech.vectors, spaces)


def _vectors(contents: list[Content], name: str, encoder: Encoder, limits: Limits) -> Embedded:
    embed(contents, {name: encoder}, CACHE, limits=limits)
    found = cached_vectors(contents, encoder, CACHE, limits=limits)
    if found.failures:
        raise SourceError(f"{len(found.failures)} of the {name} files cannot be read: {found.failures[0].reason}")
    return found


def _aligned(fit: Photographs) -> Callable[[Photographs, int | None], Placed]:
    """The product's alignment, fitted on photographs."""
    rows = np.arange(len(fit))
    channels = {
        "text": Views(
            fit.spaces["text"], np.repeat(rows, fit.text.shape[1]), fit.text.reshape(-1, fit.text.shape[2])
        ),
        "image": Views(fit.spaces["image"], rows, fit.image),
        "speech": Views(fit.spaces["speech"], rows, fit.speech),
    }
    maps = fit_alignment(channels, len(fit), AlignmentConfig(), seed=SEED).alignment.maps

    def place(asked: Photographs, dimension: int | None) -> Placed:
        def one(kind: str, x: Floats) -> Floats:
            return unit(maps[asked.spaces[kind]](x.reshape(-1, x.shape[-1]))[:, :dimension])

        text = one("text", asked.text).reshape(*asked.text.shape[:2], -1)
        return Placed(text, one("image", asked.image), one("speech", asked.speech))

    return place


def _ridge(fit: Photographs, held: Photographs) -> dict[str, Doubles]:
    """Ranks by ridge, its penalties chosen for each direction by mean reciprocal rank within the fitted part."""
    inner = np.array_split(np.random.default_rng(SEED).permutation(len(fit)), 4)
    scores = {(i, s, d): 0.0 for i in STRENGTHS for s in STRENGTHS for d in DIRECTIONS}
    for i, part in enumerate(inner):
        rest = np.concatenate([p for j, p in enumerate(inner) if j != i])
        image = {s: _regress(fit.image[rest], fit.text[rest], fit.image[part], s) for s in STRENGTHS}
        speech = {s: _regress(fit.speech[rest], fit.text[rest], fit.speech[part], s) for s in STRENGTHS}
        for a in STRENGTHS:
            for b in STRENGTHS:
                for direction, found in ranks(Placed(fit.text[part], image[a], speech[b])).items():
                    scores[a, b, direction] += float((1 / found).mean())
    out = {}
    for direction in DIRECTIONS:
        a, b, _ = max((key for key in scores if key[2] == direction), key=lambda key: scores[key])
        image_of = _regress(fit.image, fit.text, held.image, a)
        out[direction] = ranks(Placed(held.text, image_of, _regress(fit.speech, fit.text, held.speech, b)))[direction]
    return out


def _regress(x: Floats, text: Floats, asked: Floats, strength: float) -> Floats:
    """Where ridge from x (n, d) to the mean caption (n, c, dt) places `asked` (k, d): (k, dt) unit rows."""
    penalty = strength * float(((x - x.mean(0)) ** 2).sum(1).mean())
    return unit(Ridge(alpha=penalty).fit(x, text.mean(1)).predict(asked).astype(np.float32))


def ranks(placed: Placed) -> dict[str, Doubles]:
    """Mid-ranks of what is right, by direction: (n, c) where captions ask, (n,) where the photograph asks.

    Asked for text, any caption of the photograph is right: the best of them counts, among all other photographs'.
    """
    n, c, d = placed.text.shape
    texts = placed.text.reshape(n * c, d)
    both = unit(texts + np.repeat(placed.speech, c, axis=0))
    own = np.repeat(np.arange(n), c)
    return {
        "text to image": _rank(texts @ placed.image.T, own).reshape(n, c),
        "image to text": _best(placed.image @ texts.T, c),
        "speech to text": _best(placed.speech @ texts.T, c),
        "speech to image": _rank(placed.speech @ placed.image.T, np.arange(n)),
        "text+speech to image": _rank(both @ placed.image.T, own).reshape(n, c),
    }


def _rank(scores: Floats, own: Ints) -> Doubles:
    mine = scores[np.arange(len(scores)), own][:, None]
    above, level = (scores > mine).sum(1), (scores == mine).sum(1)
    return np.asarray(above + (1 + level) / 2)


def _best(scores: Floats, c: int) -> Doubles:
    """scores (n, n * c) -> rank of the best own caption among it and all captions of others."""
    n = len(scores)
    by = scores.reshape(n, n, c)
    mine = by[np.arange(n), np.arange(n)].max(1)
    by = by.copy()
    by[np.arange(n), np.arange(n)] = -np.inf
    above, level = (by > mine[:, None, None]).sum((1, 2)), (by == mine[:, None, None]).sum((1, 2))
    return np.asarray(above + 1 + level / 2)


def _hits(found: Doubles, k: int) -> Doubles:
    """(n,) share of a photograph's questions answered within k."""
    return np.asarray((found.reshape(len(found), -1) <= k).mean(1))
