"""The limits of requests and the pauses of the service, each at its last value and one beyond."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from pydantic import ValidationError
from toy_service import RULES, toy_bundle, with_contents

from features.log.corrections import CorrectionFeed
from features.store.memory import MemoryStore
from features.store.stream import Entry
from serving.errors import ApiError
from serving.event_consumer import event_of
from serving.routes.items.fields import parse_fields
from serving.routes.search_query import json_object
from serving.schemas.body import first_error
from serving.schemas.events import EventIn
from serving.state import log_keeper
from serving.state.log_keeper import LogKeeper
from serving.state.store import keeper as store_keeper
from serving.state.store.keeper import StoreKeeper

HOST = "https://media.example.org/"


@pytest.mark.parametrize(
    ("field", "fits", "exceeds"),
    [
        ("title", "x" * 1000, "x" * 1001),
        ("description", "x" * 200_000, "x" * 200_001),
        ("categories", ["x"] * 100, ["x"] * 101),
        ("categories", ["x" * 1000], ["x" * 1001]),
        ("group_id", "x" * 512, "x" * 513),
        ("price", 0, -0.5),
        ("price", 10**12, 10**12 + 1),
        ("image", HOST + "x" * (4096 - len(HOST)), HOST + "x" * (4097 - len(HOST))),
        ("colour", "x" * 200_000, "x" * 200_001),
        ("size", 2**31 - 1, 2**31),
        ("size", -(2**31), -(2**31) - 1),
    ],
)
def test_a_field_of_an_item(tmp_path: Path, field: str, fits: Any, exceeds: Any) -> None:
    bundle = with_contents(toy_bundle(tmp_path), hosts=("media.example.org",))
    data = bundle.data.model_copy(update={"extra_columns": ("colour", "size")})
    frame = bundle.catalog.frame.with_columns(colour=pl.lit("none"), size=pl.lit(1, pl.Int32))
    bundle = replace(bundle, data=data, catalog=replace(bundle.catalog, frame=frame))

    def parse(value: Any) -> Any:
        return parse_fields(orjson.dumps({field: value}), bundle, tmp_path)

    assert parse(fits) == {field: fits}
    with pytest.raises(ApiError) as caught:
        parse(exceeds)
    assert (caught.value.status, caught.value.place.partition(".")[0]) == (422, field)


def test_commas_and_brackets_of_a_body() -> None:
    body = b'{"x":[' + b"0," * 99_998 + b"0]}"  # with the two brackets 100,000
    assert len(json_object(body, "bad_query")["x"]) == 99_999
    with pytest.raises(ApiError) as caught:
        json_object(body.replace(b"0]}", b"0,0]}"), "bad_query")
    assert caught.value.detail == "the body has more than 100000 commas and brackets; send less"


def test_an_error_names_64_characters_of_a_field() -> None:
    with pytest.raises(ValidationError) as caught:
        EventIn.model_validate({"user_id": "u", "item_id": "i", "event": "e", "x" * 70: 1})
    assert first_error(caught.value)[0] == "x" * 64
    with pytest.raises(ApiError) as refused:
        parse_fields(orjson.dumps({"y" * 70: 1}), toy_bundle(Path("x")), Path("x"))
    assert refused.value.place == "y" * 64


@pytest.mark.parametrize(
    ("name", "now", "timestamp", "order"),
    [
        ("1500000000000-1", 1_800_000_000_000_000, 1_500_000_000_000_000, 1),
        ("1499999999999-1", 1_800_000_000_000_000, 1_800_000_000_000_000, 1),
        ("1600086400000-1", 1_600_000_000_000_000, 1_600_086_400_000_000, 1),
        ("1600086400001-1", 1_600_000_000_000_000, 1_600_000_000_000_000, 1),
        ("1600000000000-16777215", 1_600_000_000_000_000, 1_600_000_000_000_000, 16_777_215),
        ("1600000000000-16777216", 1_600_000_000_000_000, 1_600_000_000_000_000, 16_777_215),
    ],
)
def test_an_id_of_a_stream_as_a_time(name: str, now: int, timestamp: int, order: int) -> None:
    event: Any = event_of(Entry(name, {b"user_id": b"u", b"item_id": b"i", b"event": b"e"}), now)
    assert (event.event_id, event.timestamp, event.order) == (name, timestamp, order)


class Idle:
    """A filler whose fillings fail at once. starts: the time of each, and whether it was anew."""

    running, fault = False, ""

    def __init__(self, clock: list[float]) -> None:
        self.clock, self.starts = clock, list[float]()

    def start(self, store: Any, data: Any) -> None:
        self.starts.append(self.clock[0])
        self.fault = "no table"

    def stop(self) -> None:
        """Nothing is running."""


def test_fillings_that_fail_pause_twice_as_long_up_to_five_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(store_keeper.time, "monotonic", lambda: clock[0])
    filler, notes = Idle(clock), dict[str, str]()
    keeper = StoreKeeper(tmp_path, CorrectionFeed(tmp_path), notes, filler)
    data, store = toy_bundle(tmp_path).data, MemoryStore(RULES)
    for second in range(1500):
        clock[0] = float(second)
        keeper.step(store, data)
    assert filler.starts == [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 811, 1111, 1411]
    assert notes == {"store": "no table"}
    keeper.expect_new_tables(private=True)  # of another bundle: a new start
    keeper.step(store, data)
    assert filler.starts[-1] == 1499


def test_the_log_is_pruned_a_minute_after_the_start_and_then_every_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, begun = [1000.0], list[float]()

    class Ended:
        """A round that has ended, without a report."""

        returncode = 0

        def __init__(self, command: list[str], **options: Any) -> None:
            begun.append(clock[0])

        def poll(self) -> int:
            return 0

        def communicate(self) -> tuple[str, str]:
            return "null", ""

    monkeypatch.setattr(log_keeper.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(log_keeper.subprocess, "Popen", Ended)
    keeper = LogKeeper(tmp_path, {})
    for clock[0] in (1000.0, 1059.0, 1060.0, 1061.0, 4659.0, 4660.0, 8260.0):
        keeper.step()
    assert begun == [1060.0, 4660.0, 8260.0]
