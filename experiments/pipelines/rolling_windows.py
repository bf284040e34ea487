"""Rolling windows: where the time of a run is cut, and which items and events each cut lets in."""

from experiments.config import RunConfig
from experiments.dataset import Dataset, keep_frequent
from experiments.splits import Split, leave_last_out, time_split, window_cuts
from features.errors import ConfigError


def evaluation_windows(config: RunConfig, dataset: Dataset) -> list[tuple[Dataset, dict[str, Split]]]:
    """The data set and the split of each placement, for each window; oldest first.

    Raises ConfigError when items are to be frequent before a cut and there is none, and DataError when the events
    have too few distinct times or leave nothing to predict.
    """
    placements = config.data.placements
    if config.split.kind == "leave-last-out":
        if config.data.min_train_events:
            raise ConfigError(
                f"data.min_train_events = {config.data.min_train_events} needs a cut in time, and split.kind is "
                "leave-last-out: set it to 0"
            )
        split = leave_last_out(dataset.events)
        return [(dataset, dict.fromkeys(placements, split))]
    out = []
    # by the events before the validation window: validation must not know which items it will make frequent
    for window in window_cuts(dataset.events, config.split):
        kept = keep_frequent(dataset, window[0], config.data.min_train_events)
        splits = {
            name: time_split(kept.events, window, history=config.split.history, repeats=placement.repeats)
            for name, placement in placements.items()
        }
        out.append((kept, splits))
    return out
