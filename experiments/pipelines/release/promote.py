"""Promotion: a bundle becomes current only if the decision of an experiment says so, and the bundle is its variant.

Two kinds of result are read. That of `recsys experiment run` has a decision by the rule of its file; the bundle must
have been trained with configuration, data and code of the variant. That of `recsys experiment analyse --json` has
intervals; here the rule is `online_reason`, and the bundle must have answered in the test.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.evaluation.verdict import SHIP
from experiments.pipelines.experiment.report import RESULT_FILES
from experiments.pipelines.fit import RERANKED, TOWERS
from experiments.tracking.mlflow import champion
from features.errors import ConfigError, DataError, describe_os_error
from recsys.bundle.formats import read_manifest
from recsys.bundle.io import load_bundle
from recsys.bundle.registry import find_bundle, publish_bundle

NOT_COMPARED = ("name", "bundles", "cache", "baselines", "seed")
"""Settings in which a bundle may differ from its variant: names and places, baselines, and the seed, which is looked
for among those of the experiment."""


def promote(result: Path, variant: str, root: Path, *, name: str | None = None, metric: str | None = None) -> str:
    """Make the bundle of a variant current, if the result says so; returns the reason, in one line.

    result: a file of `recsys experiment run` (or its folder) or of `recsys experiment analyse --json`; variant: or
    arm; root: folder of the bundles. name: of the bundle; None, after a test: the one that answered in the arm.
    metric: of the decision about a test. Raises ConfigError for options that do not fit, DataError where the result
    does not say so, or the bundle is not the variant, BundleError, and OSError.
    """
    facts = _read(result)
    if "decisions" in facts:
        if metric is not None:
            raise ConfigError(f"--metric {metric!r}: the rule of an offline experiment is in its file; remove it")
        reason = offline_reason(facts, variant)
        itself = facts["variants"][variant]["bundle"]
        if name is None and itself is None:
            raise ConfigError(
                "--bundle is missing: train the variant (`recsys train CONFIG --no-publish`, with its settings), and "
                "name the bundle"
            )
        bundle = find_bundle(root, name or itself)
        if different := differences(facts, variant, read_manifest(bundle)):
            raise DataError(f"{bundle} is not {variant!r} of {result}: {'; '.join(different)}")
    else:
        reason = online_reason(facts, variant, metric)
        bundle = find_bundle(root, arm_bundle(facts, variant, name))
    load_bundle(bundle)
    why = f"{variant} of {result}: {reason}"
    publish_bundle(bundle, why)
    champion(bundle, {"promoted": why})
    return f"bundle {bundle} is current: {why}"


def _read(result: Path) -> dict[str, Any]:
    """The JSON of a result, of either kind."""
    path = result / RESULT_FILES[0] if result.is_dir() else result
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {describe_os_error(error)}") from error
    except ValueError:
        facts = None
    offline, online = {"decisions", "variants", "facts"}, {"changes", "bundles", "planned"}
    if isinstance(facts, dict) and (offline <= facts.keys() or online <= facts.keys()):
        return facts
    raise DataError(
        f"{path} is no result: give the folder of `recsys experiment run`, run by this version, or a file with what "
        "`recsys experiment analyse --json` printed"
    )


def offline_reason(facts: Mapping[str, Any], variant: str) -> str:
    """The reason of the decision. Raises DataError where the variant has none, or another one than to ship."""
    decisions = {row["variant"]: row for row in facts["decisions"]}
    if variant not in decisions:
        raise DataError(f"no decision about {variant!r}: there is one about {', '.join(decisions)}")
    row = decisions[variant]
    if row["decision"] != SHIP:
        raise DataError(f"{variant}: {row['decision']}: {row['reason']}; nothing was published")
    return str(row["reason"])


def differences(facts: Mapping[str, Any], variant: str, manifest: Mapping[str, Any]) -> list[str]:
    """In what a bundle differs from a variant of an offline experiment, each as one clause."""
    expected, control = (facts["variants"][name] for name in (variant, facts["control"]))
    if (itself := expected["bundle"]) is not None:
        return [] if manifest["fingerprint"] == itself else [f"the variant is the bundle {itself}"]
    out = []
    if expected["model"] not in (RERANKED, TOWERS):
        return [f"the variant is the baseline {expected['model']}, which no bundle holds"]
    if expected["rules"] != control["rules"]:
        out.append(
            "the variant differs from the control in rules, which no bundle holds: give the file to "
            "`recsys serve --rules`, and publish the bundle by `recsys bundle publish`"
        )
    if "decision" in manifest:
        out.append("a night trained it, and chose its settings without the newest events")
    if "from" in manifest:
        out.append(f"its training continued that of {manifest['from']}, and the variant is trained from scratch")
    theirs = dict(expected["config"]) | ({} if expected["model"] == RERANKED else {"reranker": None})
    ours = flat({key: value for key, value in manifest["config"].items() if key not in NOT_COMPARED})
    theirs = flat({key: value for key, value in theirs.items() if key not in NOT_COMPARED})
    out += [
        f"{key} is {ours.get(key)!r}, that of the variant {theirs.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if manifest["seed"] not in facts["facts"]["seeds"]:
        out.append(f"seed is {manifest['seed']}, those of the experiment {facts['facts']['seeds']}")
    for key, what in (("data_hash", "data"), ("code_version", "version of the code")):
        if manifest[key] != facts["facts"][key]:
            out.append(f"{what}: {manifest[key]}, of the variant {facts['facts'][key]}")
    return out


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their path, such as towers.dimension."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return out


def online_reason(facts: Mapping[str, Any], arm: str, metric: str | None) -> str:
    """Why an arm of a test is better. Raises DataError where it is not shown to be.

    Shown: the interval of the metric that holds at all looks lies above 0; no such interval of another metric of the
    arm lies below 0; and the numbers of users agree with the shares.
    """
    rows = {row["metric"]: row for row in facts["changes"] if row["arm"] == arm}
    if not rows:
        arms = dict.fromkeys(row["arm"] for row in facts["changes"])
        raise DataError(f"{arm!r} was not compared: arms are {', '.join(arms)}, against {facts['control']}")
    if metric not in rows:
        raise ConfigError(f"--metric: by which metric is it decided? One of {', '.join(map(repr, rows))} is needed")
    if facts["planned"] is None:
        raise DataError(
            "the intervals hold for one number of users only: analyse with --planned, the users of the whole test"
        )
    if facts["warning"]:
        raise DataError(f"{facts['warning']}; nothing was published")
    shown = {
        name: f"{name} {row['always']['mean']:+.4g} [{row['always']['low']:+.4g}, {row['always']['high']:+.4g}]"
        for name, row in rows.items()
    }
    if rows[metric]["always"]["low"] <= 0:
        raise DataError(f"{arm} is not shown to be better: {shown[metric]}; nothing was published")
    if worse := [shown[name] for name, row in rows.items() if row["always"]["high"] < 0]:
        raise DataError(f"{arm} is worse: {'; '.join(worse)}; nothing was published")
    return shown[metric]


def arm_bundle(facts: Mapping[str, Any], arm: str, name: str | None) -> str:
    """The fingerprint of the bundle that answered in an arm; name: which one, where there were several.

    Raises DataError where it is that of the control, or none is meant.
    """
    found = [bundle for bundle in facts["bundles"][arm] if name is None or bundle.startswith(name)]
    if len(found) != 1:
        there = ", ".join(facts["bundles"][arm])
        raise DataError(f"{arm}: bundles that answered in it: {there}; name one of them with --bundle")
    if found[0] in facts["bundles"][facts["control"]]:
        raise DataError(
            f"{arm}: its bundle {found[0]} answered for {facts['control']}, too: what differs is not the bundle"
        )
    return str(found[0])
