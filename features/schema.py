"""The data contract: the column names and the meaning of events."""

import unicodedata
from collections.abc import Iterator
from functools import cached_property
from types import NoneType
from typing import Annotated, Any, Self, get_args

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails

USER, ITEM, EVENT, TIME, VALUE = "user_id", "item_id", "event", "timestamp", "value"
EVENT_ID, REQUEST_ID, POSITION, PROPENSITY = "event_id", "request_id", "position", "propensity"
TITLE, DESCRIPTION, CATEGORIES, PRICE = "title", "description", "categories", "price"
IMAGE, AUDIO, VIDEO = "image", "audio", "video"
PUBLISHED, AVAILABLE, GROUP = "published_at", "available", "group_id"

ROW = "row"
"""Column beside those of canonical events: their row in the file, from 0. It orders events of one time."""

VIEW = "view"
"""Type of the events that say that a person saw an item; see `EventRules.ignores`."""

CONTRACT = (
    *(USER, ITEM, EVENT, TIME, VALUE, EVENT_ID, REQUEST_ID, POSITION, PROPENSITY),
    *(TITLE, DESCRIPTION, CATEGORIES, PRICE, IMAGE, AUDIO, VIDEO, PUBLISHED, AVAILABLE, GROUP),
)
"""Names of all columns of the contract."""

MAX_ID_BYTES = 512
"""Maximum length of an id or an event type in UTF-8 bytes, everywhere."""

MIN_POSITION, MAX_POSITION = 1, 10_000
"""Positions of an item in a response, counted from 1."""

MAX_PLACEMENT = 100
"""Characters of the name of a placement: it stands in URLs, records and reports."""

MIN_WEIGHT, MAX_WEIGHT = 1e-9, 1e6
"""Training weights of events: beyond them, products in single precision vanish or overflow."""

MAX_PRICE = 1e12
"""The largest price, everywhere; a larger number is a mistake of its source."""


class StrictModel(BaseModel):
    """A configuration section: unknown keys are errors, numbers are finite, no boolean is a number.

    Instances are immutable.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_booleans(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """pydantic takes true for 1, also where YAML reads a text such as `yes` as true."""
        model = handler(given)
        problems: list[InitErrorDetails] = []
        fields = {key: name for name, field in cls.model_fields.items() for key in _keys(name, field)}
        for key in given if isinstance(given, dict) else ():
            name = fields[key]
            kinds = list(_kinds(cls.model_fields[name].annotation))
            needed = [
                "float_type" if float in kinds else "int_type",
                *(["none_required"] if NoneType in kinds else []),
            ]
            for place, value in _booleans_as_numbers(given[key], getattr(model, name)):
                problems += [InitErrorDetails(type=each, loc=(key, *place), input=value) for each in needed]
        if problems:
            raise ValidationError.from_exception_data(cls.__name__, problems)
        return model


def _keys(name: str, field: FieldInfo) -> Iterator[Any]:
    """The keys that a field is read from: its name, and earlier names."""
    yield name
    if isinstance(field.validation_alias, AliasChoices):
        yield from field.validation_alias.choices


def _kinds(annotation: Any) -> Iterator[Any]:
    """A type and the types within it."""
    yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)


def _booleans_as_numbers(given: Any, read: Any) -> Iterator[tuple[tuple[str | int, ...], bool]]:
    """Places where a boolean was given and a number was read, and the boolean."""
    if isinstance(given, bool):
        if isinstance(read, int | float) and not isinstance(read, bool):
            yield (), given
    elif isinstance(given, dict) and isinstance(read, dict):
        for key in (key for key in given if key in read):
            yield from (((key, *place), value) for place, value in _booleans_as_numbers(given[key], read[key]))
    elif isinstance(given, list | tuple) and isinstance(read, list | tuple):
        for index, pair in enumerate(zip(given, read, strict=False)):
            yield from (((index, *place), value) for place, value in _booleans_as_numbers(*pair))


def _letters(text: str) -> str:
    """The letters and digits of a text, without case."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def _swapped(a: str, b: str) -> bool:
    """Whether two neighbours are swapped, in texts of four letters or more."""
    if len(a) != len(b) or len(a) < 4 or a == b:
        return False
    start = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    return a[start : start + 2] == b[start : start + 2][::-1] and a[start + 2 :] == b[start + 2 :]


def _one_slip(a: str, b: str) -> bool:
    """Whether one letter is missing, added or wrong. Digits count things and do not slip."""
    if min(len(a), len(b)) < 4:
        return False
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    a, b = a[start:], b[start:]
    if a[:1].isdigit() or b[:1].isdigit():
        return False
    return a[1:] == b[1:] or a[1:] == b or a == b[1:]


class EventRules(StrictModel):
    """The meaning of event types."""

    positive: dict[str, float | None]
    """Event type -> minimum value for an event to be positive in training; null: any value, and none, is positive."""

    seen: tuple[str, ...] | None = None
    """Event types that make an item count as seen; null: all types, but views that no rule names."""

    weights: dict[str, Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)]] = {}
    """Positive event type -> weight of its events in the loss of the towers; 1 for types that are not named."""

    history: Annotated[int, Field(ge=2, le=100_000)] = 512
    """Events that count of a user, in training, evaluation and service alike: the newest half of this number whatever
    they are, then the newest positive ones, then the newest others."""

    seen_items: Annotated[int, Field(ge=1, le=1_000_000)] = 8_000
    """Items that count as seen by a user, the ones seen last. The store reads 8 bytes of each with every request."""

    history_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    """Days after which events and seen items no longer count; null: never. A user without newer ones leaves the
    store."""

    @cached_property
    def named(self) -> tuple[str, ...]:
        """All event types that are named here."""
        return tuple(sorted({*self.positive, *(self.seen or ())}))

    @property
    def types(self) -> tuple[str, ...]:
        """Event types that the user tower distinguishes: all types named here, or none when only one is named."""
        return self.named if len(self.named) > 1 else ()

    def ignores(self, name: str) -> bool:
        """Whether events of this type are in no history, make nothing seen and are not trained on.

        So are views that no rule names: they are logged, and tell the outcomes of exposures.
        """
        return name == VIEW and VIEW not in self.named

    def _others(self, name: str) -> tuple[str, ...]:
        """The types that an event type may misspell: those that are named, and a view."""
        return self.named if name == VIEW or VIEW in self.named else (*self.named, VIEW)

    def misspelled(self, name: str) -> str | None:
        """The known type that an event type surely misspells; None when it is named itself, or is unlike all of them.

        Case, blanks and marks alone differ, or two neighbouring letters are swapped, in types of four letters or more
        (`veiw`). One wrong letter often makes another word (`bike`, `like`), and is no proof.
        """
        if name in self.named:
            return None
        letters, others = _letters(name), self._others(name)
        alike = [other for other in others if letters and _letters(other) == letters]
        alike += [other for other in others if _swapped(letters, _letters(other))]
        return alike[0] if alike else None

    def meant(self, name: str) -> str | None:
        """The known type that an event type may misspell: also by one letter that is missing, added or wrong."""
        if name in self.named:
            return None
        letters = _letters(name)
        slips = (other for other in self._others(name) if _one_slip(letters, _letters(other)))
        return self.misspelled(name) or next(slips, None)

    @model_validator(mode="after")
    def _check_weights(self) -> "EventRules":
        if unknown := sorted({*self.weights} - {*self.positive}):
            raise ValueError(f"weights of {', '.join(unknown)}: only types named in `positive` are learned from")
        return self


class Placement(StrictModel):
    """A place in the product where recommendations are shown."""

    repeats: bool = False
    """Whether items that the user has seen may be recommended."""


def _placement_name(name: str) -> str:
    if not name.strip() or not name.isprintable() or len(name) > MAX_PLACEMENT:
        raise ValueError(
            f"the name of a placement has 1 to {MAX_PLACEMENT} characters, none of them a control character: "
            f"{name[:MAX_PLACEMENT]!a}"
        )
    return name


PlacementName = Annotated[str, AfterValidator(_placement_name)]


class DataConfig(StrictModel):
    """Where the tables are and how they are read."""

    source: str
    """Name for `recsys data get`: movielens, complete-journey, sequences, amazon-2023, microlens, stamps,
    folder."""

    path: str
    """Folder of the canonical tables: items.*, events.* and optionally users.* (parquet, csv or jsonl)."""

    origin: str | None = None
    """File or folder that the source is read from (a GroupLens folder, a sequences file), or a name that is
    downloaded (a category of amazon-2023); null: a package."""

    events: EventRules
    placements: dict[PlacementName, Placement] = Field(default={"home": Placement()}, min_length=1)

    min_train_events: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Items with fewer training events are not in the catalogue; their number is printed. 0 keeps cold items."""

    extra_columns: tuple[str, ...] = ()
    """Additional item columns to read and keep; the report names all other columns, which are ignored."""

    log: str | None = None
    """Folder of the service's event log; its accepted events are added to the events table."""
