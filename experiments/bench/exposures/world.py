"""A simulated shop whose log has position bias: people, their past, and visits to slates with exploration.

The catalogue is the most rated films of MovieLens, and tastes are in their singular vectors, as in
`experiments.bench.loop.world`. What people took before is unaided. Then they visit: they are shown the order of
towers that were trained on the past, with known exploration, and click what they look at and like.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from experiments.bench.loop.world import CLICK, PURCHASE, catalogue, write_past
from experiments.config import RunConfig
from experiments.dataset import Dataset, load_dataset
from experiments.pipelines.fit import build_two_stage
from experiments.simulation.behaviour import Behaviour, Moment, Showings, chosen_unaided, respond
from experiments.simulation.people import People, people_near
from features.arrays import Bools, Ints
from features.ids import IdMap
from features.instants import DAY
from features.log.event_log import EventLog
from features.log.records import Event, Exploration, Exposure, Record
from features.schema import ITEM
from recsys.ranking.exploration import LAW
from recsys.recommender import TwoStageRecommender
from recsys.towers.training import fit_towers

PLACEMENT = "home"
BEGIN = 1_767_225_600_000_000
"""Day 0 of the visits: 2026-01-01 UTC, µs."""

MINUTE, HOUR = 60_000_000, 3_600_000_000
UNAIDED = 0.3
Texts = npt.NDArray[np.str_]

K, AMONG, RATE = 10, 30, 0.3
"""Items of a slate, all of them explored; products dealt to the pools; probability that a pool is drawn from."""


@dataclass(frozen=True)
class Size:
    """items: of the catalogue; people: with a past of `past` events each, and as many visits as `rounds`."""

    items: int = 400
    people: int = 800
    past: int = 10
    rounds: int = 4


@dataclass(frozen=True)
class World:
    """The log is written.

    dataset: of tables and log; film (n,): of each row of the catalogue the row in `people.items`; person (u,): of
    each row of the users the row in `people.tastes`; cut: end of the visits, µs.
    """

    size: Size
    config: RunConfig
    people: People
    behaviour: Behaviour
    dataset: Dataset
    retrieval: TwoStageRecommender
    film: Ints
    person: Ints
    cut: int


def build(folder: Path, size: Size, seed: int) -> World:
    """Write tables and a log below `folder`, and train the towers that were served."""
    films, vectors = catalogue(folder / "movielens", size.items)
    people = people_near(vectors, size.people, seed=seed, liked=0.04)
    behaviour = Behaviour(fatigue=1.0)  # what is shown again is liked as before: position alone hides it
    item_ids = tuple(films.get_column(ITEM))
    user_ids = tuple(f"p{person:05d}" for person in range(size.people))
    write_past(folder / "data", films, people, user_ids, size.past, seed, BEGIN)
    config = _config(folder, seed)
    dataset = load_dataset(config)
    towers = fit_towers(dataset.catalog, dataset.events, config.towers, config.training, seed=seed)
    retrieval = build_two_stage(towers.model, dataset.events, config)
    film = IdMap(item_ids).rows(dataset.catalog.ids.ids)
    person = IdMap(user_ids).rows(dataset.users.ids)
    world = World(size, config, people, behaviour, dataset, retrieval, film, person, BEGIN + size.rounds * DAY)
    rng, showings = np.random.default_rng([seed, 3]), Showings.none(people)
    with closing(EventLog(folder / "log")) as log:
        for day in range(size.rounds):
            log.append_now(_visit(world, load_dataset(config), showings, day, rng))
    return replace(world, dataset=load_dataset(config))


def _config(folder: Path, seed: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "exposures",
            "data": {
                "source": "folder",
                "path": str(folder / "data"),
                "events": {"positive": {CLICK: None, PURCHASE: None}},
                "log": str(folder / "log"),
            },
            "encoder": None,
            "towers": {"dimension": 32, "layers": 1, "history": 20},
            "training": {"epochs": 4},
            "reranker": {"candidates": 200, "groups": 1500},
            "seed": seed,
        }
    )


def _visit(world: World, dataset: Dataset, showings: Showings, day: int, rng: np.random.Generator) -> list[Record]:
    """What the log gets on one day, of one visit of each person; `showings` is updated."""
    at = BEGIN + day * DAY
    states = dataset.events.states(np.arange(len(world.person)), np.full(len(world.person), at)).compact()
    ranked = world.retrieval.recommend(states, K + AMONG, exclude=states.seen_items()).rows  # (u, K + AMONG)
    own, pools = ranked[:, :K], ranked[:, K:].reshape(-1, AMONG // K, K).transpose(0, 2, 1)  # dealt in turn
    drawn = rng.random(own.shape) < RATE
    place = rng.integers(0, AMONG // K, own.shape)
    rows = np.where(drawn, np.take_along_axis(pools, place[:, :, None], 2)[:, :, 0], own)
    slates = world.film[rows]
    moment = Moment(world.person, np.full(len(rows), float(day)), showings.of(world.person, slates))
    did = respond(world.people, world.behaviour, slates, moment, rng)
    showings.add(world.person, slates)
    users, items = np.array(dataset.users.ids), np.array(dataset.catalog.ids.ids)
    rows_of_films = np.argsort(world.film)
    records: list[Record] = []
    for line, user in enumerate(users.tolist()):
        request = f"{user}-{day}"
        shown, stood, possible = items[rows[line]], items[own[line]], items[pools[line]]
        records.append(_exposure(request, user, at, shown, stood, possible, drawn[line]))
        for p in np.flatnonzero(did.clicked[line]).tolist():
            clicked = at + (p + 1) * MINUTE
            records.append(_event(request, user, str(items[rows[line, p]]), CLICK, clicked, p + 1))
            if np.isfinite(did.bought_after[line, p]):
                bought = clicked + int(did.bought_after[line, p] * DAY)
                records.append(_event(request, user, str(items[rows[line, p]]), PURCHASE, bought, p + 1))
    unaided = chosen_unaided(world.people, np.array([float(day)]), seed=day)[1]
    for line in np.flatnonzero(rng.random(len(users)) < UNAIDED).tolist():
        item = dataset.catalog.ids.ids[rows_of_films[unaided[world.person[line]]]]
        records.append(Event(str(users[line]), item, CLICK, at + HOUR, event_id=f"{users[line]}-{day}-unaided"))
    return records


def _exposure(request: str, user: str, at: int, items: Texts, own: Texts, pools: Texts, drawn: Bools) -> Exposure:
    positions = np.arange(1, K + 1)
    exploration = Exploration(
        "explore", LAW, RATE, 0, tuple(positions.tolist()), tuple(own.tolist()), tuple(map(tuple, pools.tolist())),
        tuple(positions[drawn].tolist()),
    )  # fmt: skip
    propensities = np.where(drawn, RATE / (AMONG // K), 1 - RATE)
    return Exposure(
        request_id=request,
        user_id=user,
        placement=PLACEMENT,
        timestamp=at,
        fingerprint="simulated",
        variant="default",
        source="model",
        degraded=(),
        items=tuple(items.tolist()),
        scores=tuple(np.linspace(1, 0, K).tolist()),
        propensities=tuple(propensities.tolist()),
        exploration=exploration,
    )


def _event(request: str, user: str, item: str, kind: str, at: int, position: int) -> Event:
    name = f"{request}-{kind}-{item}"
    return Event(user, item, kind, at, event_id=name, request_id=request, position=position)
