"""What simulated people do with a slate: which positions they view, what they click, and when they buy.

The position-based model (Richardson, Dominowska & Ragno 2007; Craswell et al. 2008): a person views position p with
the probability p^-bias, independently of all else, and clicks a viewed item with its attraction. So the probability
of a click is the product of the two, and the expectation of a slate is a sum over its positions.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from experiments.simulation.people import People
from features.arrays import Bools, Doubles, Ints


@dataclass(frozen=True)
class Behaviour:
    """How people behave. bias: exponent of the position bias, 0 for none; most: attraction of an item that is liked
    fully and shown for the first time; fatigue: factor of the attraction for each earlier showing of the item to the
    person, 1 for none; converts: probability that a click is followed by a purchase; delay: mean days from the click
    to the purchase, exponentially distributed.
    """

    bias: float = 1.0
    most: float = 0.8
    fatigue: float = 0.8
    converts: float = 0.3
    delay: float = 2.0

    def viewed(self, positions: Ints) -> Doubles:
        """The probability that a position is viewed; positions from 1, of any shape."""
        return positions.astype(np.float64) ** -self.bias

    def attraction(self, liking: Doubles, shown: Ints) -> Doubles:
        """The probability that a viewed item is clicked; liking: from 0 to 1; shown: its earlier showings."""
        return self.most * liking * self.fatigue**shown

    def bought_within(self, days: float) -> float:
        """The probability that a click is followed by a purchase within so many days."""
        return float(-self.converts * np.expm1(-days / self.delay))


@dataclass(frozen=True)
class Moment:
    """b answers: users (b,); days (b,): when; shown (b, k): how often each item of the answer was shown before."""

    users: Ints
    days: Doubles
    shown: Ints


@dataclass(frozen=True)
class Responses:
    """What b people did with k positions. viewed, clicked (b, k); bought_after (b, k): days from the answer to the
    purchase, infinite where there is none."""

    viewed: Bools
    clicked: Bools
    bought_after: Doubles


@dataclass
class Showings:
    """How often each of n items was shown to each of u people. counts (u, n)."""

    counts: npt.NDArray[np.uint16] = field(repr=False)

    @classmethod
    def none(cls, people: People) -> "Showings":
        """Before anything was shown."""
        return cls(np.zeros((len(people.tastes), len(people.items)), dtype=np.uint16))

    def of(self, users: Ints, rows: Ints) -> Ints:
        """(b, k): showings of rows (b, k) to users (b,) so far."""
        return self.counts[users[:, None], rows].astype(np.int64)

    def add(self, users: Ints, rows: Ints) -> None:
        """Slates rows (b, k) were shown to users (b,); -1 is no item."""
        at, place = np.nonzero(rows >= 0)
        np.add.at(self.counts, (users[at], rows[at, place]), 1)


def click_probabilities(
    people: People, behaviour: Behaviour, slates: Ints, moment: Moment, positions: Ints | None = None
) -> Doubles:
    """(b, k): the exact probability that each item of slates (b, k) is clicked; 0 where there is none (-1).

    positions: (k,) or (b, k), from 1; None: 1 to k.
    """
    at = np.arange(1, slates.shape[1] + 1) if positions is None else positions
    liking = people.liking(moment.users, slates, moment.days)
    return behaviour.viewed(at) * behaviour.attraction(liking, moment.shown)


def respond(
    people: People, behaviour: Behaviour, slates: Ints, moment: Moment, rng: np.random.Generator
) -> Responses:
    """One draw of what b people do with slates (b, k), best item first; -1 is no item."""
    draws = rng.random((3, *slates.shape))
    viewed = (draws[0] < behaviour.viewed(np.arange(1, slates.shape[1] + 1))) & (slates >= 0)
    liking = people.liking(moment.users, slates, moment.days)
    clicked = viewed & (draws[1] < behaviour.attraction(liking, moment.shown))
    bought = clicked & (draws[2] < behaviour.converts)
    after = rng.exponential(behaviour.delay, slates.shape)
    return Responses(viewed, clicked, np.where(bought, after, np.inf))


def chosen_unaided(people: People, days: Doubles, *, seed: int) -> tuple[Ints, Ints]:
    """What all u people take without recommendations, once at each of days (m,): users, rows (u · m,), by day.

    A person takes an item with a probability in proportion to the liking of it.
    """
    rng, users = np.random.default_rng(seed), np.arange(len(people.tastes))
    rows = []
    for day in days:
        sums = np.cumsum(people.likings(users, np.full(len(users), day)), axis=1)  # (u, n)
        rows.append((sums < rng.random((len(users), 1)) * sums[:, -1:]).sum(1))
    return np.tile(users, len(days)), np.concatenate(rows)
