"""The bare parts of a recommendation: what an answer needs, called directly, on one thread and without a service."""

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from threadpoolctl import threadpool_limits

from experiments.bench.rerank import Clock
from experiments.bench.serve.service import LIMIT
from features.arrays import Ints
from features.instants import now_micros
from features.log.event_log import EventLog
from features.log.records import Exposure
from features.store.redis import RedisStore
from recsys.bundle.io import load_bundle
from recsys.interfaces import Candidates
from recsys.ranking.reranker import Reranker
from recsys.ranking.slate import fill_slates, item_groups
from recsys.stored_states import states_in_rows

STAGES = (
    "read of the store",
    "user tower",
    "search",
    "pair features",
    "trees",
    "slate and JSON",
    "commit of the log",
)


class Parts:
    """Measures the parts of one request after another, as a request has them.

    bundle: its folder; store: URL of a filled store; log: a folder on the disk of the service's log; answer: one of
    the service, whose JSON is made again.
    """

    def __init__(self, bundle: Path, store: str, log: Path, answer: dict[str, Any]) -> None:
        """Raises BundleError and LogError."""
        self._bundle = load_bundle(bundle)
        self._store = RedisStore(store, self._bundle.data.events, timeout=1.0)
        self._log, self._answer = EventLog(log), answer
        self._groups = item_groups(self._bundle.catalog)
        self._clocks = {"ms": Clock(time.perf_counter), "CPU ms": Clock(time.process_time)}

    def close(self) -> None:
        """Close log and store."""
        self._log.close()
        self._store.close()

    def measure(self, users: Sequence[str]) -> None:
        """A request of each user, and again by CPU time: on a busy machine, the two differ."""
        with threadpool_limits(1):
            for user in users:
                for clock in self._clocks.values():
                    self._request(user, clock)

    def medians(self) -> dict[str, dict[str, float]]:
        """Of each part, the median of milliseconds ("ms") and of those of the processor ("CPU ms")."""
        return {stage: {unit: _median(clock, stage) for unit, clock in self._clocks.items()} for stage in STAGES}

    def _request(self, user: str, clock: Clock) -> None:
        recommender = self._bundle.recommender
        reranker = recommender.reranker
        assert isinstance(reranker, Reranker)
        clock.start()
        state = self._store.read_users([user])[0]
        clock.mark(STAGES[0])
        states = states_in_rows([state], self._bundle.catalog.ids, self._bundle.data.events, now_micros())
        seen, allow = states.seen_items(), self._bundle.catalog.available.copy()
        clock.start()
        recommender.user_vectors(states)
        clock.mark("user tower")
        candidates = recommender.retrieve(states, recommender.candidates, allow=allow, exclude=seen)
        clock.mark("tower and search")
        matrix = reranker.features.matrix(states, candidates)
        clock.mark("pair features")
        scores = reranker.predict(matrix)
        clock.mark("trees")
        ranked = candidates.sorted(scores, len(scores[0]))

        def find(_: Ints, n: int) -> Candidates:
            return Candidates(ranked.rows[:, :n], ranked.scores[:, :n])

        clock.start()
        slate = fill_slates(find, 1, LIMIT, self._groups)
        orjson.dumps(self._answer)
        clock.mark("slate and JSON")
        self._log.append_now([self._exposure(user, slate)])
        clock.mark("commit of the log")

    def _exposure(self, user: str, slate: Candidates) -> Exposure:
        """The exposure of a slate."""
        ids = self._bundle.catalog.ids.ids
        items = tuple(ids[row] for row in slate.rows[0].tolist())
        return Exposure(
            request_id=str(uuid.uuid4()),
            user_id=user,
            placement=next(iter(self._bundle.data.placements)),
            timestamp=now_micros(),
            fingerprint=self._bundle.fingerprint,
            variant="",
            source="model",
            degraded=(),
            items=items,
            scores=tuple(slate.scores[0].tolist()),
            propensities=(1.0,) * len(items),
            reasons=tuple(map(str, slate.source_names(0))),
        )


def _median(clock: Clock, stage: str) -> float:
    """The median of a stage; a search is what retrieval takes beyond the tower."""
    return clock.median("tower and search") - clock.median("user tower") if stage == "search" else clock.median(stage)
