"""The contribution of each part of the towers: the configuration as it is, and without one part at a time.

Every variant is fitted with each of several seeds. Its number of passes is chosen on the validation window, and it is
judged on the test window by retrieval alone. A user's figure is the mean over the seeds. The interval of a difference
is over users.
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
"""Name -> changes to the configuration."""


def variants(settings: RunConfig, kinds: Collection[str]) -> dict[str, RunConfig]:
    """The configuration as it is, and each variant that differs from it. kinds: the kinds of content that items have.

    A kind of content is left out only where items have it and have another kind as well.
    """
    configs = {}
    for name, changes in VARIANTS.items():
        left_out = changes.get(WITHOUT, ())
        if left_out:
            if (
                not isinstance(settings.encoder, BuiltinConfig)
                or not {*kinds} - {*left_out}
                or not {*kinds} & {*left_out}
            ):
                continue
            changes = {WITHOUT: (*settings.encoder.without, *left_out)}
        variant = settings.changed(changes)
        if variant != settings or not changes:
            configs[name] = variant
    return configs


def run(
    *, short: bool = False, config: str = "configs/beauty.yaml", seeds: int = 3, only: str | None = None
) -> Result:
    """Test figures of each variant and their change against the configuration as it is.

    config: a configuration whose data exist; only: variants, separated by commas; short: one seed, one pass.
    Raises ConfigError when a variant is not known.
    """
    settings = load_config(Path(config))
    if short:
        seeds, settings = 1, settings.changed({"training.epochs": 1})
    bare, splits = evaluation_windows(settings, load_dataset(settings))[-1]
    as_configured = encode_contents(bare, settings)
    space = as_configured.space
    configs = variants(settings, () if space is None else {*space.channels} - {TITLE_CHANNEL})
    names = list(configs) if only is None else ["as configured", *only.split(",")]
    if unknown := [name for name in names if name not in configs]:
        raise ConfigError(f"{config}: no variant {', '.join(unknown)}; choose from {', '.join(configs)}")
    placement, split = next(iter(splits.items()))
    repeats = settings.data.placements[placement].repeats
    figures: dict[str, Any] = {"data_hash": bare.hash, "split_hash": split.hash, "seeds": seeds}
    reference: Doubles | None = None  # (n_users,) of the configuration as it is
    for name in names:
        variant, started, per_seed = configs[name], time.perf_counter(), []
        new: dict[str, Any] = {}
        dataset = as_configured if variant.encoder == settings.encoder else encode_contents(bare, variant)
        for seed in range(seeds):
            seeded = variant.model_copy(update={"seed": seed, "reranker": None})
            stage = train_two_stage(seeded, dataset, splits, lambda line: None, silent)[1].retrieval
            outcome = evaluate(name, stage, split, dataset.catalog, split.test, repeats=repeats, seconds=0.0)
            per_seed.append(outcome.per_user("ndcg"))
            new[f"{name}, seed {seed}: ndcg_at_10"] = float(per_seed[-1].mean())
            new[f"{name}, seed {seed}: hr_at_10"] = float(outcome.per_user("hr").mean())
        mean: Doubles = np.mean(per_seed, axis=0)  # (n_users,)
        new[f"{name}: ndcg_at_10"] = interval_dict(bootstrap(mean, seed=0))
        new[f"{name}: seconds a seed"] = round((time.perf_counter() - started) / seeds, 1)
        if reference is None:
            reference = mean
        else:
            new[f"{name}: change of ndcg_at_10"] = interval_dict(paired_bootstrap(mean, reference, seed=0))
        for key, value in new.items():  # a run takes hours: each figure is printed as soon as it is known
            print(f"{key} {value}", file=sys.stderr, flush=True)
        figures |= new
    return Result(figures, [])
