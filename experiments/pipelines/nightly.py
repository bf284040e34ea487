"""The nightly loop: refresh the store, embed contents, train, compare with what is served, publish or not, report.

Nothing that is served changes before the last step, which is one rename. A step that fails ends the night, and what
is served stays. There is no state besides store, cache and bundles: a night that was killed is run again, repeats
what was not finished, and ends in the same state.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import RunConfig
from experiments.dataset import Dataset, embed_catalog, encode_contents, extend_dataset, load_dataset
from experiments.evaluation.decision import MIN_USERS, decide, too_few
from experiments.evaluation.ranking import Comparison
from experiments.pipelines.fit import FittedRecommender
from experiments.pipelines.held_back import (
    Candidate,
    HeldBack,
    compare_with_served,
    full_candidate,
    hold_back,
    warm_candidate,
)
from experiments.pipelines.night_report import FAILED, NOTHING_NEW, PUBLISHED, REFUSED, SKIPPED, Night
from experiments.pipelines.rolling_windows import evaluation_windows
from experiments.pipelines.train import (
    comparison,
    fit_and_evaluate,
    manifest_facts,
    refit_on_all_events,
    report_dataset,
    run_tags,
    write_bundle,
)
from experiments.pipelines.warm_start import check_comparable, continued_from, new_to, warm_starts
from experiments.preflight import preflight, publishing
from experiments.tracking.mlflow import Tracker
from experiments.tracking.progress import Reporter
from experiments.tracking.record import metric_name, record_tables, run_name
from features.errors import ConfigError, describe_os_error
from features.progress import StartProgress
from recsys.bundle.io import load_bundle
from recsys.bundle.model import Bundle
from recsys.bundle.registry import CURRENT, current_bundle, publish_bundle


def nightly(
    config: RunConfig, tracker: Tracker, reporter: Reporter, *, redis_url: str | None = None, full_every: int = 7
) -> Night:
    """Run one night and return its report, which is written to `night_report.REPORT` as well.

    redis_url: the server of the feature store, None to leave it alone; full_every: one in this many published bundles
    is trained from scratch, the others continue from the served one.

    Raises FileError at once when another run trains and publishes there. An error of a step is raised after a line
    that names the step: any RecsysError, or OSError. Nothing is published then.
    """
    if config.split.kind != "time":
        raise ConfigError(f"split.kind is {config.split.kind}: a nightly run holds back the newest events; set time")
    preflight(config, bundles=True, cache=True)
    with publishing(config):
        served = _served(config)
        night = Night(config.name, served, served)
        tracker.start(config.name, config.recorded(), {"nightly": "running"} | run_name("nightly"))
        try:
            _Loop(config, tracker, reporter, redis_url, full_every, night).run()
        except BaseException as error:
            step = night.steps[-1]["step"] if night.steps else "start"
            text = describe_os_error(error) if isinstance(error, OSError) else str(error) or type(error).__name__
            night.reason = f"step {step}: {text}"
            serving = f"{served} stays served" if served else "nothing is served yet"
            reporter.say(f"nightly: step {step} failed; {serving}")
            with suppress(OSError):  # the error of the step is the one to show
                _close(config, night, tracker)
            raise
        _close(config, night, tracker)
    return night


def _close(config: RunConfig, night: Night, tracker: Tracker) -> None:
    """Write the report, and end the tracked run. Raises OSError when the report cannot be written."""
    night.end()
    tracker.tags(night.tags)
    try:
        tracker.artifact(night.write(Path(config.bundles)))
    finally:
        tracker.finish(failed=night.status == FAILED)


@dataclass(frozen=True)
class _Loop:
    """One night on its way."""

    config: RunConfig
    tracker: Tracker
    reporter: Reporter
    redis_url: str | None
    full_every: int
    night: Night

    def run(self) -> None:
        """The steps, in order."""
        night, reporter = self.night, self.reporter
        with night.step("refresh", reporter) as step:
            if self.redis_url is None:
                step |= {"status": SKIPPED, "note": "REDIS_URL is not set"}
            else:
                step["note"] = refresh_store(self.config, self.redis_url, reporter.steps)
        with night.step("embed", reporter) as step:
            if self.config.encoder is None:
                step |= {"status": SKIPPED, "note": "encoder is null"}
            else:
                step["note"] = embed_contents(self.config, reporter.steps)
        with night.step("read", reporter):
            dataset = load_dataset(self.config, reporter.steps)
            report_dataset(dataset, reporter)
            night.data = dataset.report.lines()
            self.tracker.tags(run_tags(self.config, dataset))
            served = None if night.served is None else load_bundle(current_bundle(Path(self.config.bundles)))
        if served is None:
            self._begin(dataset)
            return
        with night.step("hold back", reporter) as step:
            held_back = self._hold_back(served, dataset)
            step["note"] = night.reason
        if held_back is not None:
            self._replace(served, dataset, held_back)

    def _begin(self, dataset: Dataset) -> None:
        """The first night: a full training on all events, with the tables of the configured test window."""
        config, reporter = self.config, self.reporter
        with self.night.step("train", reporter):
            self.night.kind = "full"
            kept, splits = evaluation_windows(config, dataset)[-1]
            kept = encode_contents(kept, config, reporter.steps)
            outcomes, selected, _ = fit_and_evaluate(config, kept, splits, reporter, self.tracker)
            tables = [
                comparison(config, name, [split], outcomes[name], config.baselines) for name, split in splits.items()
            ]
            data, trained = refit_on_all_events(config, dataset, kept, selected, reporter)
        self.night.reason = "the first bundle, there is none to compare it with"
        self._publish(dataset, data, trained, tables, {})

    def _hold_back(self, served: Bundle, dataset: Dataset) -> HeldBack | None:
        """The held-back events; None where the night ends here, with its status and reason."""
        check_comparable(self.config, served)
        extended = extend_dataset(served.catalog, dataset, self.config.data.min_train_events)
        held_back = hold_back(extended.events, new_to(served, extended))
        night = self.night
        if held_back is None:
            night.status, night.reason = NOTHING_NEW, "no positive event is new since the served bundle was trained"
            return None
        start, end = (f"{np.datetime64(at, 'us')} UTC" for at in (held_back.cut, held_back.end - 1))
        counts = {"events": held_back.events, "users": held_back.users}
        night.held_back = {"from": start, "until": end, **counts, "split_hashes": {}}
        if held_back.users < MIN_USERS:
            night.status, night.reason = REFUSED, too_few({"held back": held_back.users})
            return None
        if not held_back.learnable:
            night.status = REFUSED
            night.reason = (
                f"all new events have the time {start}: none can be learned while they are held back; they count "
                "again the next time"
            )
            return None
        return held_back

    def _replace(self, served: Bundle, dataset: Dataset, held_back: HeldBack) -> None:
        """Train a candidate, judge it, and publish it with the held-back events, or not."""
        config, night, reporter = self.config, self.night, self.reporter
        full = warm_starts(served) + 1 >= self.full_every
        night.kind = "full" if full else "warm start"
        with night.step("train", reporter):
            if full:
                candidate = full_candidate(config, dataset, held_back.cut, reporter)
            else:
                candidate = warm_candidate(config, served, dataset, held_back.cut, reporter)
        with night.step("compare", reporter) as step:
            tables = self._judge(candidate, served, dataset, held_back)
            step["note"] = night.reason
        if night.status == REFUSED:
            return
        with night.step("finish", reporter):
            data, trained = candidate.finish()
        facts = {"decision": night.decision, "held_back": night.held_back}
        self._publish(dataset, data, trained, tables, facts | ({} if full else continued_from(served)))

    def _judge(self, candidate: Candidate, served: Bundle, dataset: Dataset, held_back: HeldBack) -> list[Comparison]:
        """The tables of the candidate and the served bundle; the night gets the decision."""
        night = self.night
        tables = compare_with_served(self.config, candidate, served, dataset, held_back, self.reporter)
        pairs = {table.placement: (table.outcomes[-1], table.outcomes[0]) for table in tables}
        decision = decide(pairs, seed=self.config.seed)
        assert night.held_back is not None
        night.held_back["split_hashes"] = {table.placement: table.hashes[0] for table in tables}
        night.tables = [table.to_dict() for table in tables]
        night.decision, night.reason = decision.to_dict(), decision.reason
        if not decision.publish:
            night.status = REFUSED
        changes = {f"{metric_name(d.placement)}.{d.metric}_change": d.change.mean for d in decision.differences}
        self.tracker.metrics(changes)
        return tables

    def _publish(
        self,
        dataset: Dataset,
        data: Dataset,
        trained: FittedRecommender,
        tables: list[Comparison],
        facts: dict[str, Any],
    ) -> None:
        """Write the bundle and make it current, unless another one was published since the night began."""
        config, night = self.config, self.night
        with night.step("publish", self.reporter) as step:
            facts = manifest_facts(config, dataset, tables) | facts
            path = write_bundle(config, data, trained, facts)
            night.tables = [table.to_dict() for table in tables]
            record_tables(self.tracker, tables, {})
            night.current = _served(config)
            if night.current != night.served:
                night.status = REFUSED
                night.reason = f"{night.current} was published meanwhile; {path.name} was not judged against it"
                step |= {"status": SKIPPED, "note": night.reason}
                self.tracker.bundle(path, current=False)
                return
            publish_bundle(path, "recsys nightly")
            self.tracker.bundle(path, current=True)
            night.status, night.current = PUBLISHED, path.name


def refresh_store(config: RunConfig, url: str, progress: StartProgress) -> str:
    """Bring the feature store at a URL up to date with tables and log; returns what was written, in one line.

    Raises ConfigError for a URL that is not one, StoreError and LogError.
    """
    from features.store.connection import check_url
    from features.store.jobs.refresh import refresh
    from features.store.redis import RedisStore
    from features.tables.event_files import EventFiles

    check_url(url)
    store = RedisStore(url, config.data.events, timeout=1.0)
    store.ping()
    report = refresh(store, EventFiles(config.data), Path(config.data.log or "state/log"), progress=progress)
    return (
        f"{report.users:,} users and {report.table_events:,} events from the tables, {report.log_events:,} events "
        "from the log"
    )


def embed_contents(config: RunConfig, progress: StartProgress) -> str:
    """Embed the contents that the cache lacks; returns what was embedded, in one line."""
    report, _ = embed_catalog(config, progress=progress)
    return "; ".join(
        f"{encoder.encoder}: {encoder.computed:,} computed, {encoder.cached:,} cached, {encoder.failed:,} failed"
        for encoder in report.encoders
    )


def _served(config: RunConfig) -> str | None:
    """The fingerprint of the current bundle; None where none is published. Raises BundleError."""
    root = Path(config.bundles)
    return current_bundle(root).name if (root / CURRENT).is_symlink() else None
