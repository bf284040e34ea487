"""Rules of a shop about what is shown, in a YAML file outside of the bundle.

Each rule has a name and one of: `only` and `exclude`, which items may be shown; `pin`, an item at a position; `cap`,
how often a value of a column may occur; `boost`, a change of scores; `minimum`, a score that is needed; `fresh`, a
share for new items; `diversity`, how much items must differ; `rotation`, how far what was shown steps back;
`explore`, positions that are left to chance.
`recsys.ranking.slate_rules` applies them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from features.errors import ConfigError
from features.schema import StrictModel
from recsys.retrieval.filters import Filter
from recsys.yaml_text import YamlFile

KINDS = ("only", "exclude", "pin", "cap", "boost", "minimum", "fresh", "diversity", "rotation", "explore")
MAX_POSITION = 100
MAX_AMONG = 500

Segment = Literal["all", "known", "cold"]


class Pin(StrictModel):
    """An item that stands at a position, counted from 1, wherever it may be shown at all."""

    item: str
    position: Annotated[int, Field(ge=1, le=MAX_POSITION)]


class Cap(StrictModel):
    """At most so many items of a slate have the same value in a column; of a list, each value counts."""

    column: str
    at_most: Annotated[int, Field(ge=1)]


class Boost(StrictModel):
    """A number that is added to the scores of items. One is the standard deviation of the candidates' scores."""

    items: Filter
    by: Annotated[float, Field(ge=-100, le=100)]


class Fresh(StrictModel):
    """A share of each slate for items that were published in the last days, as far as candidates are."""

    share: Annotated[float, Field(gt=0, le=1)]
    days: Annotated[float, Field(gt=0)]


class Diversity(StrictModel):
    """Maximal marginal relevance (Carbonell & Goldstein 1998).

    The next item has the largest (1 - weight) * score - weight * similarity: its score in standard deviations, and
    its largest cosine with an item of the slate. half: `behaviour` compares what people do with the items, `content`
    what the items show and say, `both` takes the mean.
    """

    weight: Annotated[float, Field(gt=0, lt=1)]
    half: Literal["behaviour", "content", "both"] = "content"


class Rotation(StrictModel):
    """What the user was shown in the last days and has not touched since loses by * (1 - age / days).

    by: in standard deviations of the candidates' scores; age: of the last showing, in days.
    """

    by: Annotated[float, Field(gt=0, le=100)]
    days: Annotated[float, Field(gt=0, le=365)]


class Explore(StrictModel):
    """Positions of a list, counted from 1, that show another item with a known probability.

    With a probability of `rate`, a position shows one of the candidates after the slate, of which the best `among`
    are dealt to the positions. `recsys.ranking.exploration` defines the law.
    """

    positions: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_POSITION)], ...], Field(min_length=1)]
    rate: Annotated[float, Field(gt=0, le=1)]
    among: Annotated[int, Field(ge=1, le=MAX_AMONG)]

    @model_validator(mode="after")
    def _distinct(self) -> "Explore":
        if len({*self.positions}) < len(self.positions):
            raise ValueError("a position stands twice: name each one once")
        return self

    def after(self, shown: int) -> "Explore | None":
        """What is left on a page that follows `shown` items of a list; None for nothing."""
        positions = tuple(position - shown for position in self.positions if position > shown)
        return self.model_copy(update={"positions": positions}) if positions else None


class Rule(StrictModel):
    """One rule. placements: where it applies, all by default; users: `cold` are those without a positive event."""

    name: Annotated[str, Field(min_length=1)]
    placements: tuple[str, ...] = ()
    users: Segment = "all"
    only: Filter | None = None
    exclude: Filter | None = None
    pin: Pin | None = None
    cap: Cap | None = None
    boost: Boost | None = None
    minimum: float | None = None
    fresh: Fresh | None = None
    diversity: Diversity | None = None
    rotation: Rotation | None = None
    explore: Explore | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Rule":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"one of {', '.join(KINDS)} is needed, given: {', '.join(given) or 'none'}")
        return self

    def is_cap_of(self, placement: str) -> bool:
        """Whether this is a cap that names the placement."""
        return self.cap is not None and placement in self.placements

    def meets(self, other: "Rule") -> bool:
        """Whether there is a request that both rules apply to."""
        placements = not self.placements or not other.placements or bool({*self.placements} & {*other.placements})
        return placements and ("all" in (self.users, other.users) or self.users == other.users)


class Rules(StrictModel):
    """The rules of a file."""

    rules: tuple[Rule, ...] = ()

    def conflict(self) -> tuple[int, str] | None:
        """The first rule that cannot stand beside an earlier one: its number, from 0, and why."""
        for number, rule in enumerate(self.rules):
            for earlier in self.rules[:number]:
                if rule.name == earlier.name:
                    return number, f"the name {rule.name!r} stands twice: give each rule a name of its own"
                if rule.meets(earlier) and (why := _contradiction(earlier, rule)):
                    return number, f"{rule.name!r} contradicts {earlier.name!r}: {why}; remove one of them"
        return None

    def fault(self, misfit: Callable[[Rule], str] | None = None) -> tuple[int, str] | None:
        """The first rule that cannot be used: its number, from 0, and why. misfit: see `load_rules`."""
        if (conflict := self.conflict()) or misfit is None:
            return conflict
        return next(((number, why) for number, rule in enumerate(self.rules) if (why := misfit(rule))), None)

    def of(self, placement: str, *, cold: bool) -> tuple[Rule, ...]:
        """The rules of a request: for a placement, and for a user with or without a positive event."""
        users = ("all", "cold" if cold else "known")
        return tuple(
            rule
            for rule in self.rules
            if rule.users in users and (not rule.placements or placement in rule.placements)
        )

    def of_list(self, name: Literal["similar", "search"], *, cold: bool) -> tuple[Rule, ...]:
        """The rules of a list that is no recommendation: what may be shown, and the caps that name the list."""
        return tuple(rule for rule in self.of(name, cold=cold) if rule.only or rule.exclude or rule.is_cap_of(name))


def _contradiction(one: Rule, other: Rule) -> str:
    """Why two rules cannot both be kept; "" when they can."""
    if one.pin and other.pin and one.pin.position == other.pin.position:
        return f"both pin position {one.pin.position}"
    if one.pin and other.pin and one.pin.item == other.pin.item:
        return f"both pin item {one.pin.item}"
    if one.cap and other.cap and one.cap.column == other.cap.column:
        return f"both cap column {one.cap.column}"
    for kind in ("minimum", "fresh", "diversity", "rotation", "explore"):
        if getattr(one, kind) is not None and getattr(other, kind) is not None:
            return f"both set {kind}"
    return ""


def rules_fault(path: Path) -> str:
    """Why a file of rules cannot be used; "" when it can."""
    try:
        load_rules(path)
    except ConfigError as error:
        return str(error)
    return ""


def load_rules(path: Path, misfit: Callable[[Rule], str] | None = None) -> Rules:
    """The rules of a file. misfit: why a rule does not fit a catalogue, "" when it does.

    Raises ConfigError with the line, the reason and the remedy.
    """
    return rules_of(YamlFile(path, "rules"), misfit)


def rules_of(file: YamlFile, misfit: Callable[[Rule], str] | None = None) -> Rules:
    """The rules of a file that was read; see `load_rules`."""
    rules = file.checked(Rules)
    if fault := rules.fault(misfit):
        number, why = fault
        raise file.fault(("rules", number), why)
    return rules
