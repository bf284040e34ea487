"""Shared code of the HTTP encoders: retries, batches, bisection of rejected batches, validation of responses."""

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
from features.errors import ConfigError, SpaceError, describe_connection_error, describe_url
from features.progress import Step

T = TypeVar("T")
R = TypeVar("R")

RETRYABLE_STATUSES = frozenset({429, 500, 502, 503, 504})
"""Statuses of temporary failures: the request is sent again."""

CONTENT_STATUSES = frozenset({400, 413, 422})
"""Statuses that a single content of a batch may cause: the batch is bisected."""

MAX_WAIT_SECONDS = 60.0
MAX_MESSAGE_CHARS = 300


class RetryableError(Exception):
    """A temporary failure; retry_after: seconds that the server asks the client to wait."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RefusedError(SpaceError):
    """A permanent failure: the server rejects the request."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RetryPolicy:
    """Bounds on the attempts of one request: at most `tries` attempts and about `seconds` in total.

    Waits grow as 1, 2, 4, … seconds with full jitter (Brooker, "Exponential Backoff and Jitter", AWS 2015). They are
    never shorter than the server asks for.
    """

    tries: int = 6
    seconds: float = 300.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[float, float], float] = random.uniform

    def run(self, place: str, attempt: Callable[[], T]) -> T:
        """The result of `attempt`. Raises SpaceError when the last allowed attempt raises RetryableError."""
        started = self.clock()
        for attempts in count(1):
            try:
                return attempt()
            except RetryableError as error:
                wait = max(self.jitter(0.0, min(2.0 ** (attempts - 1), MAX_WAIT_SECONDS)), error.retry_after)
                elapsed = self.clock() - started
                if attempts >= self.tries or elapsed + wait > self.seconds:
                    hint = f" and asks to wait {error.retry_after:.0f} s" if error.retry_after else ""
                    raise SpaceError(
                        f"{place} {error}{hint}; tried {attempts} times in {elapsed:.0f} s. Run again later"
                    ) from None
            self.sleep(wait)
        raise AssertionError


DEFAULT_RETRY = RetryPolicy()


@dataclass(frozen=True)
class PreparedRequest(Generic[R]):
    """A content prepared for sending.

    request: None if no part can be sent; parts: positions of the parts in the request; size: bytes;
    failures: (position, reason) of the parts that cannot be sent.
    """

    request: R | None
    parts: tuple[int, ...] = ()
    size: int = 0
    failures: tuple[tuple[int, str], ...] = ()


class EmbeddingService:
    """The client of one embedding service: its name in messages, its API key and its retry policy."""

    def __init__(self, place: str, key: str | None, retry_policy: RetryPolicy, timeout: float) -> None:
        """timeout: seconds without a byte. Raises ConfigError when the key is not valid in an HTTP header."""
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError(
                f"{place}: the API key is empty, or has characters that a header cannot hold; copy it again"
            )
        self.place = place
        self.retry_policy = retry_policy
        self.client = httpx2.Client(timeout=timeout)
        self._key = key
        weakref.finalize(self, self.client.close)

    def sanitised(self, text: str) -> str:
        """A text of the server for a message: without the key and control characters, and of bounded length."""
        text = text.replace(self._key, "***") if self._key else text
        text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_MESSAGE_CHARS]).split())
        return text if len(text) <= MAX_MESSAGE_CHARS else f"{text[:MAX_MESSAGE_CHARS]}…"

    def raise_for_status(self, status: int, text: str, retry_after: float = 0.0) -> NoReturn:
        """Raises RetryableError for a temporary failure, else RefusedError."""
        message = f"answers {status}: {self.sanitised(text) or 'without a message'}"
        if status in RETRYABLE_STATUSES:
            raise RetryableError(message, retry_after)
        raise RefusedError(f"{self.place} {message}", status)

    def call(self, function: Callable[[], T]) -> T:
        """The result of `function`. Raises RetryableError when the connection fails or the response is incomplete."""
        try:
            return function()
        except httpx2.TimeoutException:
            raise RetryableError("cannot be reached: there was no answer in time") from None
        except httpx2.RequestError as error:
            raise RetryableError(f"cannot be reached: {describe_connection_error(error)}") from None
        except json.JSONDecodeError as error:
            raise RetryableError(f"answers with invalid JSON at character {error.pos} of {len(error.doc)}") from None
        except UnicodeDecodeError:
            raise RetryableError("answers with invalid UTF-8") from None

    def embed(
        self, requests: Sequence[R], send: Callable[[Sequence[R]], list[list[float]]], d: int
    ) -> tuple[Floats, dict[int, str]]:
        """(n, d) unit rows, and the reason for each rejected request, by its row, which is zeros.

        send returns a vector for each request, in order, and raises RetryableError or RefusedError. Raises SpaceError
        when the service fails, when its response is invalid, or when it rejects each of several requests.
        """
        vectors, refused = self._bisect(requests, send, d)
        if len(refused) == len(requests) > 1:
            raise SpaceError(f"every one of {len(requests)} contents is refused; the first: {refused[0]}")
        return vectors, refused

    def _bisect(
        self, requests: Sequence[R], send: Callable[[Sequence[R]], list[list[float]]], d: int
    ) -> tuple[Floats, dict[int, str]]:
        n = len(requests)
        try:
            return self.retry_policy.run(self.place, lambda: self._units(send(requests), n, d)), {}
        except RefusedError as error:
            if error.status not in CONTENT_STATUSES:
                raise
            if n == 1:
                return np.zeros((1, d), np.float32), {0: str(error)}
        left, refused = self._bisect(requests[: n // 2], send, d)
        right, right_refused = self._bisect(requests[n // 2 :], send, d)
        return np.concatenate([left, right]), refused | {n // 2 + at: reason for at, reason in right_refused.items()}

    def _units(self, response: list[list[float]], n: int, d: int) -> Floats:
        """(n, d) unit rows. Raises SpaceError when the response is not n finite vectors (d,)."""
        if len(response) != n:
            raise SpaceError(
                f"{self.place}: {n} contents were sent and {len(response)} vectors were received; check the model"
            )
        for at, vector in enumerate(response):
            if len(vector) != d:
                raise SpaceError(
                    f"{self.place}: vector {at} of {n} has {len(vector)} numbers, {d} are expected; set dimension"
                )
        try:
            vectors = np.array(response, dtype=np.float64)
        except (TypeError, ValueError):
            raise SpaceError(f"{self.place}: the response has vectors that are not made of numbers") from None
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(vectors, axis=1)
        for at, length in enumerate(lengths.tolist()):
            if not 0 < length < np.inf:
                raise SpaceError(f"{self.place}: vector {at} of {n} is of length {length}, which has no direction")
        out: Floats = (vectors / lengths[:, None]).astype(np.float32)
        return out


def checked_base_url(base_url: str) -> str:
    """The address without a trailing slash. Raises ConfigError when it is invalid or contains a password."""
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.userinfo or url.query or url.fragment:
        raise ConfigError("base_url: a password, query or fragment in the address is not used; pass a key as api_key")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(
            f"base_url: {describe_url(base_url)!r} is not an address; use one such as https://api.example.com/v1"
        )
    return base_url.rstrip("/")


def retry_after_seconds(header: str | None) -> float:
    """Seconds to wait by a Retry-After header, which is a number or a date; 0.0 without a valid header."""
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
    prepare: Callable[[Content], PreparedRequest[R]],
    send: Callable[[Sequence[R]], list[list[float]]],
    *,
    max_requests: int,
    max_bytes: int,
    progress: Step | None,
) -> Embedded:
    """Embeds contents in batches of at most `max_requests` and `max_bytes`, one batch after the other.

    A content is prepared when its batch is filled, so that only the media of one batch are in memory.
    """
    vectors = np.zeros((len(contents), space.dimension), dtype=np.float32)
    present = np.zeros(len(contents), dtype=np.bool_)
    failures: list[Failure] = []
    done = 0
    for end, batch in _batches(contents, prepare, max_requests, max_bytes):
        rows = [row for row, prepared in batch if prepared.request is not None]
        requests = [prepared.request for _, prepared in batch if prepared.request is not None]
        reasons: dict[int, str] = {}
        if requests:
            vectors[rows], refused = service.embed(requests, send, space.dimension)
            reasons = {rows[at]: reason for at, reason in refused.items()}
            present[rows] = [row not in reasons for row in rows]
        for row, prepared in batch:
            failed = prepared.failures + tuple((part, reasons[row]) for part in prepared.parts if row in reasons)
            failures.extend(Failure(row, part, reason) for part, reason in sorted(failed))
        if progress:
            progress(end - done)
        done = end
    return Embedded(space, vectors, present, tuple(failures))


def _batches(
    contents: Sequence[Content], prepare: Callable[[Content], PreparedRequest[R]], max_requests: int, max_bytes: int
) -> Iterator[tuple[int, list[tuple[int, PreparedRequest[R]]]]]:
    """(end, [(row, prepared)]) of consecutive contents; a content above `max_bytes` is a batch of its own."""
    batch: list[tuple[int, PreparedRequest[R]]] = []
    size = requests = 0
    for row, content in enumerate(contents):
        prepared = prepare(content)
        if batch and (requests == max_requests or size + prepared.size > max_bytes):
            yield row, batch
            batch, size, requests = [], 0, 0
        batch.append((row, prepared))
        size += prepared.size
        requests += prepared.request is not None
    if batch:
        yield len(contents), batch
