"""Exploration of known law: positions of a slate that show, with a known probability, another item than their own.

The slate is filled first, as without exploration. An explored position is one that a rule names and no pin holds;
the item that stands there is its *own*. The products after the slate, best first and at most `among` of them, are
dealt to the explored positions in turn: the *pool* of a position. A product that may not join the pool whose turn it
is, is offered to the next ones, and is left out where it may join none. It may join a pool if no outcome of the other
positions can then break a cap: for each value, the items that are not explored and have it, and the explored
positions whose own item or pool has it, are together at most as many as the cap allows. Pools have no product in
common, and none of the slate. With a `fresh` rule, only a new item may take the place of a new one.

Then each explored position shows, independently, an item of its pool with the probability `rate`, each item of the
pool equally likely; else its own. The probability of an item at its position is therefore exact: 1 - rate of the own
item (1 where the pool is empty), rate / size of an item of the pool.

The draw follows from a seed: `random.Random(seed)` gives two numbers to each explored position, in the order of the
positions. The first is below `rate` where the pool is drawn from; the second times the size of the pool, rounded
down, is the place of the item in it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from random import Random

import numpy as np

from features.arrays import Bools, Doubles, Ints

LAW = "pools-1"
"""Name of this law in the log."""

Value = tuple[int, int]
"""Number of a cap and code of a value that the cap counts."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one slate.

    rule: its name; positions: of the m that are explored, from 1, ascending; own, pools, shown: of each of them its
    own item, its pool, and the item that is shown; rows of the catalogue.
    """

    rule: str
    rate: float
    seed: int
    positions: tuple[int, ...]
    own: tuple[int, ...]
    pools: tuple[tuple[int, ...], ...]
    shown: tuple[int, ...]

    def propensities(self, k: int) -> Doubles:
        """(k,): the probability of each item of the slate at its position; 1 where nothing is explored."""
        out = np.ones(k)
        for position, own, pool, shown in zip(self.positions, self.own, self.pools, self.shown, strict=True):
            if pool:
                out[position - 1] = 1 - self.rate if shown == own else self.rate / len(pool)
        return out

    def explored(self, k: int) -> Bools:
        """(k,) bool: the positions that show an item of their pool."""
        out = np.zeros(k, dtype=np.bool_)
        for position, own, shown in zip(self.positions, self.own, self.shown, strict=True):
            out[position - 1] = shown != own
        return out


@dataclass(frozen=True)
class Draws:
    """The seeds of b slates, and what is drawn for them.

    seeds, states (b,): seed of each slate, and its key in `drawn`, which is filled while slates are. length: of a
    slate, where longer lists are filled: their first items are the slate, and what it does not show follows; None:
    all of a list is the slate.
    """

    seeds: Ints
    states: Ints
    length: int | None = None
    drawn: dict[int, Drawn] = field(default_factory=dict)

    @classmethod
    def of(cls, seeds: Ints, length: int | None = None) -> "Draws":
        """Of slates that are numbered from 0."""
        return cls(seeds, np.arange(len(seeds)), length)

    def __getitem__(self, at: Ints) -> "Draws":
        """The draws of some of the slates; they share `drawn`."""
        return Draws(self.seeds[at], self.states[at], self.length, self.drawn)


def deal(
    following: Sequence[AbstractSet[Value]],
    own: Sequence[AbstractSet[Value]],
    fixed: Counter[Value],
    at_most: Sequence[int],
    may_replace: Callable[[int, int], bool],
) -> list[list[int]]:
    """The pools of m explored positions: for each of them numbers of the items that follow the slate.

    following: values of each of these items; own: values of the own item of each position; fixed: how often each
    value occurs at the other positions; at_most: of each cap; may_replace: (item, position) -> whether it may at all.
    """
    pools: list[list[int]] = [[] for _ in own]
    possible = [set(values) for values in own]
    counts, turn = fixed + Counter(value for values in own for value in values), 0
    for item, values in enumerate(following):
        for position in [*range(turn, len(own)), *range(turn)]:
            new = values - possible[position]
            if may_replace(item, position) and all(counts[value] < at_most[value[0]] for value in new):
                pools[position].append(item)
                possible[position] |= new
                counts.update(new)
                turn = (position + 1) % len(own)
                break
    return pools


def draw(sizes: Sequence[int], rate: float, seed: int) -> list[int]:
    """For each pool, by its size, the place of the item that is shown; -1: the own item is."""
    source, places = Random(seed), list[int]()
    for size in sizes:
        is_drawn, place = source.random() < rate, int(source.random() * size)
        places.append(place if is_drawn and size else -1)
    return places
