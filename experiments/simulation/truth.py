"""The truth of a simulation: the exact expectation of what people do, without a draw.

The reward of an item is a click, or a purchase within some days, which follows a click with a known probability.
The reward of a slate is the sum over its items. The gain of one policy over another is exact for the same people,
days and showings so far.
"""

from dataclasses import dataclass

from experiments.simulation.behaviour import Behaviour, Moment, Showings, click_probabilities
from experiments.simulation.people import People
from features.arrays import Doubles, Ints


@dataclass(frozen=True)
class Truth:
    """The rewards of a simulation. within: None: the reward is a click; else a purchase within so many days of the
    answer's click."""

    people: People
    behaviour: Behaviour
    within: float | None = None

    @property
    def for_a_click(self) -> float:
        """The expected reward of a click."""
        return 1.0 if self.within is None else self.behaviour.bought_within(self.within)

    def of_slots(self, slates: Ints, moment: Moment, positions: Ints | None = None) -> Doubles:
        """(b, k): the expected reward of each item of slates (b, k); positions: see `click_probabilities`."""
        return self.for_a_click * click_probabilities(self.people, self.behaviour, slates, moment, positions)

    def of_slates(self, slates: Ints, moment: Moment) -> Doubles:
        """(b,): the expected reward of each slate."""
        total: Doubles = self.of_slots(slates, moment).sum(1)
        return total

    def gain(self, ours: Ints, theirs: Ints, users: Ints, days: Doubles, showings: Showings) -> Doubles:
        """(b,): the expected reward of slates ours (b, k) minus that of theirs (b, m), of the same users and days."""
        our, their = (Moment(users, days, showings.of(users, slates)) for slates in (ours, theirs))
        return self.of_slates(ours, our) - self.of_slates(theirs, their)

    def best_slates(self, users: Ints, days: Doubles, k: int) -> Ints:
        """(b, k): the k items that each user likes most, best first: no slate of new items has more reward."""
        likings = self.people.likings(users, days)
        best: Ints = (-likings).argsort(axis=1, kind="stable")[:, :k]
        return best
