"""What encoders behind HTTP share: tries, batches, the search for a refused content, answers that are checked."""

import json
import random
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Generic, NoReturn, TypeVar

import httpx2
import numpy as np

from features.arrays import Floats
from features.content.parts import Content
from features.content.spaces import Embedded, Failure, SpaceKey
from features.errors import ConfigError, SpaceError
from features.progress import Step

T = TypeVar("T")
R = TypeVar("R")

RETRYABLE_STATUSES = frozenset({429, 500, 502, 503, 504})
"""Statuses that pass by themselves."""

CONTENT_STATUSES = frozenset({400, 413, 422})
"""Statuses that may mean one content of a batch."""

LONGEST_WAIT = 60.0
LONGEST_MESSAGE = 300


class RetryableError(Exception):
    """Worth another try; after: seconds that the server asks to wait."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class RefusedError(SpaceError):
    """The server will not answer this request, however often it is sent."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RetryPolicy:
    """How long one request is tried: at most `tries` times and about `seconds` in all.

    Waits grow as 1, 2, 4, … seconds under full jitter (Brooker, "Exponential Backoff and Jitter", AWS 2015), and are
    never shorter than the server asks for.
    """

    tries: int = 6
    seconds: float = 300.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[float, float], float] = random.uniform

    def run(self, place: str, work: Callable[[], T]) -> T:
        """What work returns. Raises SpaceError when it raised Again for the last time."""
        began = self.clock()
        for done in count(1):
            try:
                return work()
            except RetryableError as error:
                wait = max(self.jitter(0.0, min(2.0 ** (done - 1), LONGEST_WAIT)), error.after)
                spent = self.clock() - began
                if done >= self.tries or spent + wait > self.seconds:
                    asked = f" and asks to wait {error.after:.0f} s" if error.after else ""
                    raise SpaceError(
                        f"{place} {error}{asked}; tried {done} times in {spent:.0f} s. Run again later"
                    ) from None
            self.sleep(wait)
        raise AssertionError


DEFAULT_RETRY = RetryPolicy()


@dataclass(frozen=True)
class PreparedRequest(Generic[R]):
    """A content made ready for sending.

    request: None where nothing is left to send; parts: the places of what is in it; size: bytes;
    failures: (place, reason) of the parts left out.
    """

    request: R | None
    parts: tuple[int, ...] = ()
    size: int = 0
    failures: tuple[tuple[int, str], ...] = ()


class EmbeddingService:
    """One embedding service: where it is, its key, and how patient we are with it."""

    def __init__(self, place: str, key: str | None, patience: RetryPolicy, timeout: float) -> None:
        """timeout: seconds without a byte. Raises ConfigError for a key that no header can carry."""
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError(f"{place}: the API key is empty, or not of plain characters; copy it once more")
        self.place = place
        self.patience = patience
        self.client = httpx2.Client(timeout=timeout)
        self._key = key
        weakref.finalize(self, self.client.close)

    def sanitised(self, text: str) -> str:
        """What a server says, fit for a message: no key, no control characters, bounded."""
        text = text.replace(self._key, "***") if self._key else text
        text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * LONGEST_MESSAGE]).split())
        return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"

    def refuse(self, status: int, text: str, after: float = 0.0) -> NoReturn:
        """Raises Again for a status that passes, else Refused."""
        message = f"answers {status}: {self.sanitised(text) or 'nothing more'}"
        if status in RETRYABLE_STATUSES:
            raise RetryableError(message, after)
        raise RefusedError(f"{self.place} {message}", status)

    def call(self, call: Callable[[], T]) -> T:
        """What a call returns. Raises Again where the connection fails, stalls or breaks off, inside the JSON too."""
        try:
            return call()
        except httpx2.RequestError as error:
            raise RetryableError(f"cannot be reached: {type(error).__name__} {self.sanitised(str(error))}") from None
        except json.JSONDecodeError as error:
            raise RetryableError(
                f"answers half: its JSON is none at character {error.pos} of {len(error.doc)}"
            ) from None
        except UnicodeDecodeError:
            raise RetryableError("answers with what is no UTF-8") from None

    def embed(
        self, requests: Sequence[R], send: Callable[[Sequence[R]], list[list[float]]], d: int
    ) -> tuple[Floats, dict[int, str]]:
        """(n, d) unit rows, and why a request was refused: its row is zeros.

        send gives a vector for each request, in their order, and raises Again or Refused. Raises SpaceError when the
        service fails, answers something else, or refuses each of several requests.
        """
        vectors, refused = self._halve(requests, send, d)
        if len(refused) == len(requests) > 1:
            raise SpaceError(f"every one of {len(requests)} contents is refused; the first: {refused[0]}")
        return vectors, refused

    def _halve(
        self, requests: Sequence[R], send: Callable[[Sequence[R]], list[list[float]]], d: int
    ) -> tuple[Floats, dict[int, str]]:
        n = len(requests)
        try:
            return self.patience.run(self.place, lambda: self._units(send(requests), n, d)), {}
        except RefusedError as error:
            if error.status not in CONTENT_STATUSES:
                raise
            if n == 1:
                return np.zeros((1, d), np.float32), {0: str(error)}
        left, refused = self._halve(requests[: n // 2], send, d)
        right, more = self._halve(requests[n // 2 :], send, d)
        return np.concatenate([left, right]), refused | {n // 2 + at: why for at, why in more.items()}

    def _units(self, answer: list[list[float]], n: int, d: int) -> Floats:
        if len(answer) != n:
            raise SpaceError(
                f"{self.place}: {n} contents were sent and {len(answer)} vectors came; is it this model?"
            )
        for at, vector in enumerate(answer):
            if len(vector) != d:
                raise SpaceError(
                    f"{self.place}: vector {at} of {n} has {len(vector)} numbers, {d} are expected; set dimension"
                )
        try:
            vectors = np.array(answer, dtype=np.float64)
        except (TypeError, ValueError):
            raise SpaceError(f"{self.place}: what came as vectors is not made of numbers") from None
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(vectors, axis=1)
        for at, length in enumerate(lengths.tolist()):
            if not 0 < length < np.inf:
                raise SpaceError(f"{self.place}: vector {at} of {n} is of length {length}, which has no direction")
        out: Floats = (vectors / lengths[:, None]).astype(np.float32)
        return out


def checked_base_url(base_url: str) -> str:
    """The address without a slash at its end. Raises ConfigError where it is none, or carries a password."""
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.userinfo:
        raise ConfigError("base_url: a password in the address ends up in logs; give it as api_key")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"base_url: {base_url!r} is no address; give one such as https://api.example.com/v1")
    return base_url.rstrip("/")


def retry_after_seconds(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, which is a number or a date; 0.0 where there is none."""
    if not header:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def embed_all(
    service: EmbeddingService,
    space: SpaceKey,
    contents: Sequence[Content],
    make_ready: Callable[[Content], PreparedRequest[R]],
    send: Callable[[Sequence[R]], list[list[float]]],
    *,
    most: int,
    most_bytes: int,
    progress: Step | None,
) -> Embedded:
    """Contents by batches of at most `most` requests and `most_bytes`, one request after the other.

    A content is made ready when its batch is filled, so that media of one batch only are in memory.
    """
    vectors = np.zeros((len(contents), space.dimension), dtype=np.float32)
    present = np.zeros(len(contents), dtype=np.bool_)
    failures: list[Failure] = []
    done = 0
    for end, batch in _batches(contents, make_ready, most, most_bytes):
        rows = [row for row, ready in batch if ready.request is not None]
        requests = [ready.request for _, ready in batch if ready.request is not None]
        why: dict[int, str] = {}
        if requests:
            vectors[rows], refused = service.embed(requests, send, space.dimension)
            why = {rows[at]: reason for at, reason in refused.items()}
            present[rows] = [row not in why for row in rows]
        for row, ready in batch:
            left_out = ready.failures + tuple((part, why[row]) for part in ready.parts if row in why)
            failures.extend(Failure(row, part, reason) for part, reason in sorted(left_out))
        if progress:
            progress(end - done)
        done = end
    return Embedded(space, vectors, present, tuple(failures))


def _batches(
    contents: Sequence[Content], make_ready: Callable[[Content], PreparedRequest[R]], most: int, most_bytes: int
) -> Iterator[tuple[int, list[tuple[int, PreparedRequest[R]]]]]:
    """(end, [(row, ready)]) of consecutive contents; one that is too large by itself goes alone."""
    batch: list[tuple[int, PreparedRequest[R]]] = []
    size = requests = 0
    for row, content in enumerate(contents):
        ready = make_ready(content)
        if batch and (requests == most or size + ready.size > most_bytes):
            yield row, batch
            batch, size, requests = [], 0, 0
        batch.append((row, ready))
        size += ready.size
        requests += ready.request is not None
    if batch:
        yield len(contents), batch
