"""Rolling evaluation windows: the data set and the splits of each window of a run."""

from experiments.config import RunConfig
from experiments.dataset import Dataset, keep_frequent
from experiments.splits import Split, leave_last_out, time_split, window_cuts
from features.errors import ConfigError


def evaluation_windows(config: RunConfig, dataset: Dataset) -> list[tuple[Dataset, dict[str, Split]]]:
    """For each window, oldest first: the data set of its frequent items, and the split of each placement.

    Raises ConfigError when data.min_train_events is set and the split has no cut in time, and DataError when the
    events have too few distinct times, a window has no targets, or its models have nothing to learn from.
    """
    dataset.events.check_targets()
    placements = config.data.placements
    if config.split.kind == "leave-last-out":
        if config.data.min_train_events:
            raise ConfigError(
                f"data.min_train_events = {config.data.min_train_events} needs a cut in time, and split.kind = "
                "leave-last-out has none: set data.min_train_events to 0"
            )
        rules = {placement.repeats for placement in placements.values()}
        by_rule = {repeats: leave_last_out(dataset.events, repeats=repeats) for repeats in rules}
        for split in by_rule.values():
            split.fit.check_targets()
        return [(dataset, {name: by_rule[placement.repeats] for name, placement in placements.items()})]
    out = []
    for window in window_cuts(dataset.events, config.split):
        # counted before the validation cut: events of the validation window must not choose the vocabulary
        kept = keep_frequent(dataset, window[0], config.data.min_train_events)
        splits = {
            name: time_split(
                kept.events, window, history=config.split.history, repeats=placement.repeats, user_ids=dataset.users
            )
            for name, placement in placements.items()
        }
        next(iter(splits.values())).fit.check_targets()
        out.append((kept, splits))
    return out
