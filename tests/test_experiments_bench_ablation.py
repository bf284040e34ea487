"""The benchmark of ablations: every variant is a valid configuration, and differences are over the same users."""

import numpy as np
import polars as pl
import pytest
import yaml
from toy_data import chain, toy_catalog

from experiments.bench import ablation
from experiments.config import RunConfig, load_config
from features.content.encoder_config import BuiltinConfig
from features.errors import ConfigError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    events = chain(60, 30, 12)
    toy_catalog(30).frame.select("item_id", "title").write_parquet(folder / "items.parquet")
    pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in events.users],
            "item_id": [f"i{item}" for item in events.items],
            "event": "view",
            "timestamp": pl.Series(events.times).cast(pl.Datetime("us", "UTC")),
        }
    ).write_parquet(folder / "events.parquet")
    path = folder / "chain.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "chain",
                "data": {"source": "folder", "path": str(folder), "events": {"positive": {"view": None}}},
                "split": {"kind": "leave-last-out"},
                "encoder": None,
                "towers": {"dimension": 8, "nested": [4], "layers": 2, "history": 12},
                "training": {"epochs": 2, "batch_events": 100, "learning_rate": 0.01, "negatives": 10},
                "reranker": None,
            }
        )
    )
    return path


def with_encoder(config, **encoder):
    return RunConfig.model_validate(load_config(config).model_dump() | {"encoder": encoder})


def test_every_variant_is_a_valid_configuration(config):
    settings = with_encoder(config, kind="builtin").changed({"towers.calendar": True})
    configs = ablation.variants(settings, {"text", "image"})
    assert list(configs) == list(ablation.VARIANTS)
    for name, variant in configs.items():
        assert RunConfig.model_validate(variant.model_dump()) == variant
        assert (variant == settings) == (name == "as configured")


def omitted(settings, kinds):
    """Names of the variants that do not apply to a configuration whose items have these kinds of content."""
    return set(ablation.VARIANTS) - set(ablation.variants(settings, kinds))


def test_a_change_without_effect_is_no_variant(config):
    flat = load_config(config).changed({"towers.nested": (), "training.negatives": 256})
    always_omitted = {"without texts", "without pictures", "without calendar"}
    assert omitted(flat, ()) == always_omitted | {"without nested vectors", "256 negatives"}
    builtin = with_encoder(config, kind="builtin")
    assert omitted(builtin, {"text"}) == always_omitted  # the items have nothing but texts, and no pictures
    assert omitted(builtin, {"text", "sound"}) == always_omitted - {"without texts"}
    assert omitted(with_encoder(config, kind="clip", model="m", revision="r"), {"content"}) == always_omitted


def test_kinds_that_the_configuration_leaves_out_stay_left_out(config):
    settings = with_encoder(config, kind="builtin", without=["speech"])
    variant = ablation.variants(settings, {"text", "image"})["without texts"]
    assert isinstance(variant.encoder, BuiltinConfig)
    assert variant.encoder.without == ("speech", "text")


def test_changes_are_differences_to_the_configuration_over_the_same_seeds(config):
    figures = ablation.run(config=str(config), seeds=2, only="without ids").figures
    means = {
        name: np.mean([figures[f"{name}, seed {seed}: ndcg_at_10"] for seed in range(2)])
        for name in ("as configured", "without ids")
    }
    for name, mean in means.items():
        assert figures[f"{name}: ndcg_at_10"]["mean"] == pytest.approx(mean)
    change = figures["without ids: change of ndcg_at_10"]
    assert change["mean"] == pytest.approx(means["without ids"] - means["as configured"])
    assert change["low"] <= change["mean"] <= change["high"]


def test_an_unknown_variant_is_rejected_with_the_known_ones(config):
    with pytest.raises(ConfigError, match=r"chain.yaml: no variant without hope; choose from as configured, "):
        ablation.run(config=str(config), only="without hope")
