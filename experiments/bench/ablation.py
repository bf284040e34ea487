"""What each part of the towers is worth: the configuration as it is, and without one part after another.

Every variant is fitted anew with each of some seeds, its passes chosen on the validation window, and judged on the
test window as retrieval alone: a user's figure is the mean over the seeds, and a difference's interval is over users.
"""

import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.runner import Result
from experiments.config import RunConfig, load_config
from experiments.dataset import encode_contents, load_dataset
from experiments.evaluation.ranking import evaluate, interval_dict
from experiments.pipelines.fit import train_two_stage
from experiments.pipelines.rolling_windows import evaluation_windows
from features.arrays import Doubles
from features.content.encoder_config import TITLE_CHANNEL, BuiltinConfig
from features.errors import ConfigError
from features.progress import silent
from recsys.evaluation.bootstrap import bootstrap, paired_bootstrap

WITHOUT = "encoder.without"

VARIANTS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "without ids": {"towers.id": False},
    "without contents": {"towers.content": False},
    "without texts": {WITHOUT: ("text",)},
    "without pictures": {WITHOUT: ("image",)},
    "without times": {"towers.times": False},
    "without calendar": {"towers.calendar": False},
    "without nested vectors": {"towers.nested": ()},
    "history of 10": {"towers.history": 10},
    "one layer": {"towers.layers": 1},
    "full softmax": {"training.negatives": 0},
    "256 negatives": {"training.negatives": 256},
    "in-batch negatives": {"training.loss": "in-batch"},
    "gBCE": {"training.loss": "gbce"},
    "cosine schedule": {"training.schedule": "cosine"},
}
"""Name -> what is changed in the configuration."""


def variants(settings: RunConfig, there: Collection[str]) -> dict[str, RunConfig]:
    """The configuration as it is, and each variant that differs from it. there: kinds of content that items have."""
    found = {}
    for name, changes in VARIANTS.items():
        left_out = changes.get(WITHOUT, ())
        if left_out:
            if (
                not isinstance(settings.encoder, BuiltinConfig)
                or not {*there} - {*left_out}
                or not {*there} & {*left_out}
            ):
                continue
            changes = {WITHOUT: (*settings.encoder.without, *left_out)}
        one = settings.changed(changes)
        if one != settings or not changes:
            found[name] = one
    return found


def run(
    *, short: bool = False, config: str = "configs/beauty.yaml", seeds: int = 3, only: str | None = None
) -> Result:
    """config: whose data are there; only: variants, separated by commas; short: one seed, one pass.

    Raises ConfigError when a variant is not known.
    """
    settings = load_config(Path(config))
    if short:
        seeds, settings = 1, settings.changed({"training.epochs": 1})
    bare, splits = evaluation_windows(settings, load_dataset(settings))[-1]
    as_configured = encode_contents(bare, settings)
    space = as_configured.space
    chosen = variants(settings, () if space is None else {*space.channels} - {TITLE_CHANNEL})
    names = list(chosen) if only is None else ["as configured", *only.split(",")]
    if unknown := [name for name in names if name not in chosen]:
        raise ConfigError(f"no variant {', '.join(unknown)} of {config}; there are {', '.join(chosen)}")
    place, split = next(iter(splits.items()))
    repeats = settings.data.placements[place].repeats
    figures: dict[str, Any] = {"data_hash": bare.hash, "split_hash": split.hash, "seeds": seeds}
    whole: Doubles | None = None
    for name in names:
        variant, began, users = chosen[name], time.perf_counter(), []
        ours: dict[str, Any] = {}
        dataset = as_configured if variant.encoder == settings.encoder else encode_contents(bare, variant)
        for seed in range(seeds):
            one = variant.model_copy(update={"seed": seed, "reranker": None})
            stage = train_two_stage(one, dataset, splits, lambda line: None, silent)[1].retrieval
            judged = evaluate(name, stage, split, dataset.catalog, split.test, repeats=repeats, seconds=0.0)
            users.append(judged.per_user("ndcg"))
            ours[f"{name}, seed {seed}: ndcg_at_10"] = float(users[-1].mean())
            ours[f"{name}, seed {seed}: hr_at_10"] = float(judged.per_user("hr").mean())
        mean: Doubles = np.mean(users, axis=0)
        ours[f"{name}: ndcg_at_10"] = interval_dict(bootstrap(mean, seed=0))
        ours[f"{name}: seconds a seed"] = round((time.perf_counter() - began) / seeds, 1)
        if whole is None:
            whole = mean
        else:
            ours[f"{name}: change of ndcg_at_10"] = interval_dict(paired_bootstrap(mean, whole, seed=0))
        for key, value in ours.items():  # hours of work: seen as soon as it is done
            print(f"{key} {value}", file=sys.stderr, flush=True)
        figures |= ours
    return Result(figures, [])
