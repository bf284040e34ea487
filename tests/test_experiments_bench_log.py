"""The benchmark of the event log, with few appends."""

import pytest

from experiments.bench.storage import log as bench
from features.errors import ConfigError


def test_a_start_reads_as_much_after_many_exposures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "FEW", 1_000)
    monkeypatch.setattr(bench, "SHORT_APPENDS", 5)
    result = bench.run(short=True, exposures=4_000)
    assert set(result.figures) == {
        "events_per_second",
        "events_and_exposures_per_second",
        "start_after_1000_exposures",
        "start_after_4000_exposures",
    }
    assert result.figures["start_after_4000_exposures"]["bytes_read"] > 0
    assert result.bars[0].holds
    with pytest.raises(ConfigError, match="bench log --exposures 10: give 1000 or more"):
        bench.run(exposures=10)
