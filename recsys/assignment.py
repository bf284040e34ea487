"""Experiments in a YAML file, and which users are in which variant: a pure function of the file and a user id.

A user id is hashed to [0, 1) by BLAKE2b with a salt, so that a user has the same variant in every process, in a batch
and in an analysis. Another salt gives an independent hash. `Experiments.assigned` is the only definition.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from features.arrays import Doubles, Ints
from features.ids import id_keys
from features.schema import USER, StrictModel
from recsys.yaml_text import YamlFile

CONTROL = "control"
"""The variant that changes nothing; it has the users whom the other variants leave."""

NO_VARIANT = "default"
"""The variant of an answer that no experiment is in force for."""

NOT_LISTED = ("similar", "search")
"""Lists that are no recommendations: they are made by the current bundle."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BAD_NAME = "use letters, digits, '.', '_' and '-', 1 to 64 of them: answers and the log name it"
_ROUNDING = 1e-9

Share = Annotated[float, Field(ge=0, le=1)]
Place = tuple[str | int, ...]
Purpose = Literal["layer", "variant"]


def hash_users(purpose: Purpose, salt: str, users: Sequence[str]) -> Doubles:
    """(n,) float64 in [0, 1): the upper 53 of 64 bits of BLAKE2b of purpose, salt and user id.

    U+0000 stands between the three. The 8 bytes of the digest are a little-endian number. Hashes of another purpose
    or salt are independent.
    """
    keys = id_keys(f"{purpose}\0{salt}\0{user}" for user in users)
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def split(shares: Sequence[float]) -> tuple[Doubles, Ints]:
    """Where the pieces of [0, 1) begin (m,), ascending from 0, and the variant of each (m,): from 1 on, 0 = control.

    [0, 1) has as many equal parts as there are variants. A variant fills its part from the beginning; a share that is
    larger than the part takes the ends of the other parts, the next part first. So raising a share takes from control
    alone while no share exceeds 1 / (number of variants), and always where there are two variants or one. With three
    or more and any shares, no function of the shares alone has this property.
    """
    n = len(shares)
    begins, ends = [place / n for place in range(n)], [(place + 1) / n for place in range(n)]
    filled = [min(begin + share, end) for begin, end, share in zip(begins, ends, shares, strict=True)]
    pieces = [*zip(begins, filled, range(1, n + 1), strict=True)]
    for variant, share in enumerate(shares):
        missing = share - (filled[variant] - begins[variant])
        for other in ((variant + step) % n for step in range(1, n)):
            taken = min(missing, ends[other] - filled[other])
            if taken > _ROUNDING:
                begin = max(ends[other] - taken, filled[other])
                pieces.append((begin, ends[other], variant + 1))
                ends[other], missing = begin, missing - taken
    edges, owners = [0.0], [0]
    for begin, end, variant in sorted(pieces):
        if begin < end:
            edges, owners = [*edges, begin, end], [*owners, variant, 0]
    return np.array(edges), np.array(owners, dtype=np.int64)


class Variant(StrictModel):
    """What some of the users get. Without rules and bundle it is a second control (an A/A test)."""

    share: Share
    """Share of the users of the experiment."""

    rules: Path | None = None
    """File of rules that replaces that of the service; relative to the folder of the experiments' file."""

    bundle: Annotated[str, Field(min_length=1)] | None = None
    """Fingerprint of the bundle that makes the recommendations, or the beginning of it."""


class Experiment(StrictModel):
    """Variants that are compared on the same kind of users at the same time."""

    name: str
    salt: str | None = None
    """What is hashed with the user id; the name by default. Another salt assigns all users anew."""

    placements: tuple[str, ...] = ()
    """Where it applies; everywhere by default."""

    layer: str | None = None
    """A user is in at most one of the experiments of a layer. Without it the experiment is alone in its layer."""

    share: Share = 1.0
    """Share of all users that take part."""

    offset: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Where the share begins in the layer: users whose hash is from `offset` to `offset + share` take part."""

    variants: Annotated[dict[str, Variant], Field(min_length=1)]
    overrides: dict[str, str] = Field(default_factory=dict)
    """User -> variant, for testing. The user takes part whatever the shares say."""

    @property
    def names(self) -> tuple[str, ...]:
        """The variants in the order of their numbers in `Experiments.assigned`: control, then those of the file."""
        return (CONTROL, *self.variants)

    @property
    def shares(self) -> dict[str, float]:
        """Variant -> its share of the users of the experiment, control first."""
        shares = {name: variant.share for name, variant in self.variants.items()}
        return {CONTROL: max(0.0, round(1 - sum(shares.values()), 9)), **shares}

    def applies(self, placement: str) -> bool:
        """Whether it is in force for a list: a placement, `similar` or `search`."""
        if placement in NOT_LISTED and any(variant.bundle for variant in self.variants.values()):
            return False
        return not self.placements or placement in self.placements

    def hashed(self, users: Sequence[str]) -> Ints:
        """(n,) int64: the number of each user's variant by the hash alone, -1 for a user who does not take part."""
        salt = self.salt or self.name
        edges, owners = split([variant.share for variant in self.variants.values()])
        variants = owners[np.searchsorted(edges, hash_users("variant", salt, users), side="right") - 1]
        at = hash_users("layer", self.layer or f"\0{salt}", users)
        return np.where((at >= self.offset) & (at < self.offset + self.share), variants, -1)

    def meets(self, other: "Experiment") -> bool:
        """Whether there is a request that both are in force for."""
        exclusive = self.layer is not None and self.layer == other.layer
        anywhere = not self.placements or not other.placements
        return not exclusive and (anywhere or bool({*self.placements} & {*other.placements}))

    def fault(self) -> tuple[Place, str] | None:
        """What is wrong with it by itself: the place in it, and why."""
        named: dict[Place, str | None] = {("name",): self.name, ("salt",): self.salt, ("layer",): self.layer}
        named |= {("variants", name): name for name in self.variants}
        for place, name in named.items():
            if name is not None and not _NAME.fullmatch(name):
                return place, _BAD_NAME
        if CONTROL in self.variants:
            return ("variants", CONTROL), "leave it out: control has the users whom the other variants leave"
        if (total := sum(variant.share for variant in self.variants.values())) > 1 + _ROUNDING:
            return ("variants",), f"the shares sum to {total:g}: lower them to 1 or less"
        if self.offset + self.share > 1 + _ROUNDING:
            return ("share",), f"with offset {self.offset:g} it ends beyond 1: lower one of them"
        for user, name in self.overrides.items():
            if name not in self.names:
                return ("overrides", user), f"there is no variant {name!r}; there are: {', '.join(self.names)}"
        by_bundle = any(variant.bundle for variant in self.variants.values())
        for at, placement in enumerate(self.placements):
            if placement == "similar":
                return ("placements", at), "similar items are for no user: leave it out"
            if by_bundle and placement in NOT_LISTED:
                return ("placements", at), "another bundle makes recommendations only: leave it out"
        return None

    def conflict(self, earlier: "Experiment") -> str:
        """Why it cannot stand beside an earlier one; "" when it can."""
        if self.name == earlier.name:
            return f"the name {self.name!r} stands twice: give each experiment a name of its own"
        if (salt := self.salt or self.name) == (earlier.salt or earlier.name):
            return f"the salt {salt!r} is that of {earlier.name!r}, too: give each experiment a salt of its own"
        for kind in ("rules", "bundle"):
            if self.meets(earlier) and self._varies(kind) and earlier._varies(kind):
                what = f"{self.name!r} and {earlier.name!r} both vary the {kind} of the same requests"
                return f"{what}: give both the same layer, or other placements"
        if self.layer is None or self.layer != earlier.layer:
            return ""
        if twice := sorted({*self.overrides} & {*earlier.overrides}):
            return f"{earlier.name!r} of the same layer has an override of user {twice[0]!r}, too: remove one"
        if max(self.offset, earlier.offset) + _ROUNDING < min(self._end, earlier._end):
            what = f"{self.name!r} and {earlier.name!r} share users of layer {self.layer!r}"
            return f"{what}: set offset and share so that they do not, e.g. offset: {earlier._end:g}"
        return ""

    @property
    def _end(self) -> float:
        return self.offset + self.share

    def _varies(self, kind: str) -> bool:
        return any(getattr(variant, kind) is not None for variant in self.variants.values())


class Experiments(StrictModel):
    """The experiments of a file."""

    experiments: tuple[Experiment, ...] = ()

    def fault(self) -> tuple[Place, str] | None:
        """The first thing that is wrong with them: its place in the file, and why."""
        for number, experiment in enumerate(self.experiments):
            if fault := experiment.fault():
                return ("experiments", number, *fault[0]), fault[1]
        for earlier, number in combinations(range(len(self.experiments)), 2):
            if why := self.experiments[number].conflict(self.experiments[earlier]):
                return ("experiments", number), why
        return None

    def places(self) -> Iterator[tuple[Place, Variant]]:
        """The variants of all experiments, with their places in the file."""
        for number, experiment in enumerate(self.experiments):
            for name, variant in experiment.variants.items():
                yield ("experiments", number, "variants", name), variant

    def assigned(self, users: Sequence[str]) -> dict[str, Ints]:
        """Experiment -> (n,) int64: of each user the number of the variant in `Experiment.names`, 0 = control, or -1
        for a user who is not in the experiment."""
        return {experiment.name: self._assigned(experiment, users) for experiment in self.experiments}

    def _assigned(self, experiment: Experiment, users: Sequence[str]) -> Ints:
        assigned = experiment.hashed(users)
        others = [other for other in self.experiments if experiment.layer and other.layer == experiment.layer]
        overridden = {user: -1 for other in others for user in other.overrides}
        overridden |= {user: experiment.names.index(name) for user, name in experiment.overrides.items()}
        if not overridden:
            return assigned
        given = np.fromiter((overridden.get(user, -2) for user in users), dtype=np.int64, count=len(users))
        return np.where(given == -2, assigned, given)

    def table(self, users: pl.Series) -> pl.DataFrame:
        """The distinct users, in their order, and a column for each experiment: the variant, null for none."""
        distinct = users.cast(pl.String).drop_nulls().unique(maintain_order=True)
        numbers = self.assigned(distinct.to_list())
        names = {e.name: pl.Series([*e.names, None], dtype=pl.String) for e in self.experiments}
        return pl.DataFrame(
            [
                distinct.alias(USER),
                *(names[name].gather(at % len(names[name])).alias(name) for name, at in numbers.items()),
            ]
        )

    def variants(self, user: str, placement: str) -> dict[str, str]:
        """Experiment -> the variant of one user, of the experiments in force for a list."""
        applied = [experiment for experiment in self.experiments if experiment.applies(placement)]
        numbers = {experiment.name: int(self._assigned(experiment, [user])[0]) for experiment in applied}
        return {e.name: e.names[numbers[e.name]] for e in applied if numbers[e.name] >= 0}

    def still(self, variants: Mapping[str, str], placement: str) -> dict[str, str]:
        """Those of the given variants, by experiment, that the file still has in force for a list."""
        applied = {e.name: e for e in self.experiments if e.applies(placement)}
        return {name: variants[name] for name, e in applied.items() if name in variants and variants[name] in e.names}


def variant_text(variants: Mapping[str, str]) -> str:
    """How answers and exposures name the variants in force: `experiment:variant`, joined by commas."""
    return ",".join(f"{experiment}:{variant}" for experiment, variant in variants.items()) or NO_VARIANT


def variants_of(text: str) -> dict[str, str]:
    """Experiment -> variant of the text in an answer or exposure; see `variant_text`."""
    named = (part.partition(":") for part in text.split(","))
    return {experiment: variant for experiment, colon, variant in named if colon}


def load_experiments(path: Path, misfit: Callable[[Variant], str] | None = None) -> Experiments:
    """The experiments of a file. misfit: why a variant cannot be served, "" when it can.

    Raises ConfigError with the line, the reason and the remedy.
    """
    file = YamlFile(path, "experiments")
    experiments = file.checked(Experiments)
    if fault := experiments.fault():
        raise file.fault(*fault)
    for place, variant in experiments.places():
        if misfit is not None and (why := misfit(variant)):
            raise file.fault(place, why)
    return experiments
