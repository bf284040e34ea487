"""Gemini Embedding 2 by its API (arXiv 2605.27295): text, pictures, sound and video interleaved in one space.

Limits of the service: 100 contents in a request; 8,192 tokens of text, 6 pictures, 180 s of sound and 120 s of video
in a content. The model reads only the pictures of a video; the sound must be sent as a separate Audio part. A prefix
of the text states the task, retrieval or similarity, since the model has no task_type parameter.
"""

import math
import os
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from features.content.encoders.frozen import Media
from features.content.encoders.remote import (
    DEFAULT_RETRY,
    EmbeddingService,
    PreparedRequest,
    RetryPolicy,
    checked_base_url,
    embed_all,
    retry_after_seconds,
)
from features.content.media.decode import decode_audio, decode_video
from features.content.media.formats import sniff
from features.content.media.worker import Array, Prepared
from features.content.parts import Content, Limits, Modality, Text, readable
from features.content.spaces import Embedded, SpaceKey, Task
from features.errors import ConfigError, ContentError, SpaceError, missing_package
from features.progress import Step

MAX_REQUEST_CONTENTS = 100
MAX_REQUEST_BYTES = 14 * 2**20
"""Maximum size of the media of one request: the limit is 20 MB, and base64 turns 3 bytes into 4."""

TEXT_TOKENS = 8192
IMAGES = 6
AUDIO_SECONDS = 180.0
VIDEO_SECONDS = 120.0

PREFIX: Mapping[Task, str] = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "similarity": "task: sentence similarity | query: ",
}
"""Prefix of the first text of a content, by task; a content without text has none."""

SCHEME: Mapping[Task, str] = {"query": "retrieval", "document": "retrieval", "similarity": "similarity"}

MIME = {"png": "image/png", "jpeg": "image/jpeg", "mp3": "audio/mpeg", "wav": "audio/wav", "mp4": "video/mp4"}
"""Formats that the model accepts."""

TOKENS_PER_IMAGE = 270
TOKENS_PER_AUDIO_SECOND = 32
TOKENS_PER_VIDEO_SECOND = 263
"""Upper bounds of the Gemini models in general; an embedding is charged by such tokens."""


class Prices(NamedTuple):
    """Dollars per million tokens."""

    text: float
    image: float
    audio: float
    video: float


PRICES = {"gemini-embedding-2": Prices(text=0.20, image=0.45, audio=6.50, video=12.00)}
"""From tokencost.app, which quotes Google's page of March 2026; read on 2026-11-23. Check ai.google.dev/pricing."""


@dataclass(frozen=True)
class Estimate:
    """Upper bound of the cost of contents. A video counts with the maximum length, whatever its own length."""

    contents: int = 0
    tokens: int = 0
    images: int = 0
    audio_seconds: float = 0.0
    video_seconds: float = 0.0
    dollars: float = 0.0


@dataclass(frozen=True)
class _File:
    data: bytes
    mime: str
    seconds: float = 0.0


_Piece = str | _File


class GeminiEncoder:
    """Embeds contents with interleaved parts by google-genai.

    The texts of a content are cut at 8,192 tokens, as the space states; four ASCII characters or one other character
    count as a token. Parts that the model does not accept are failures; the other parts of the content are embedded.
    """

    modalities: frozenset[Modality] = frozenset({"text", "image", "audio", "video"})
    reader = ""

    def __init__(
        self,
        media: Media,
        model: str = "gemini-embedding-2",
        dimension: int = 3072,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        spend_at_most: float = 1.0,
        prices: Prices | None = None,
        timeout: float = 120.0,
        retry_policy: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """dimension: 128 to 3072, tuned for 768, 1536 and 3072; api_key: None for GEMINI_API_KEY or GOOGLE_API_KEY.

        spend_at_most: maximum cost of all calls of this object in dollars, by its own estimates; prices: required
        for a model that is not in PRICES; timeout: seconds without a byte. Raises ConfigError, and DependencyError
        without google-genai.
        """
        key = api_key or os.environ.get("GEMINI_API_KEY") or os.environ.get("GOOGLE_API_KEY")
        if not key:
            raise ConfigError(f"{model}: no API key; set GEMINI_API_KEY")
        prices = prices or PRICES.get(model)
        if prices is None:
            raise ConfigError(f"{model}: prices are not known, only for {', '.join(PRICES)}; pass prices")
        if not 128 <= dimension <= 3072:
            raise ConfigError(f"{model}: dimension {dimension}; choose 128 to 3072")
        self._media = media
        self._prices = prices
        self._model = model
        self._dimension = dimension
        self._budget = spend_at_most
        self._budget_lock = Lock()
        self._service = EmbeddingService(model, key.strip(), retry_policy, timeout)
        self._genai, self._client = _client(key.strip(), base_url, self._service, timeout)

    def space(self, task: Task = "document") -> SpaceKey:
        """The space of its vectors. Google publishes no revisions of a model: its name identifies the weights."""
        preprocessing = f"interleaved, texts cut at {TEXT_TOKENS} tokens"
        return SpaceKey(self._model, "api", self._dimension, SCHEME[task], preprocessing)

    def estimate(self, contents: Sequence[Content]) -> Estimate:
        """Upper bound of the cost of contents; reads their media, sends nothing."""
        tokens = {"text": 0, "image": 0, "audio": 0, "video": 0}
        images, seconds = 0, {"audio": 0.0, "video": 0.0}
        for content in contents:
            for piece in self._prepare(content, "similarity").request or ():  # the task with the longest prefix
                if isinstance(piece, str):
                    tokens["text"] += _tokens(piece)
                    continue
                kind = piece.mime.partition("/")[0]
                if kind == "image":
                    images += 1
                else:
                    seconds[kind] += piece.seconds
        tokens["image"] = images * TOKENS_PER_IMAGE
        tokens["audio"] = math.ceil(seconds["audio"] * TOKENS_PER_AUDIO_SECOND)
        tokens["video"] = math.ceil(seconds["video"] * TOKENS_PER_VIDEO_SECOND)
        dollars = sum(n * getattr(self._prices, kind) for kind, n in tokens.items()) / 1e6
        return Estimate(len(contents), sum(tokens.values()), images, seconds["audio"], seconds["video"], dollars)

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        """One vector for each content.

        Media are read twice, for the estimate and for sending; the estimate holds the media of one content at a
        time. Raises ConfigError before anything is sent when the estimate exceeds the rest of the budget, and
        SpaceError when the service fails or its response is invalid.
        """
        cost = self.estimate(contents).dollars
        with self._budget_lock:
            if cost > self._budget:
                raise ConfigError(
                    f"{self._model}: {len(contents)} contents may cost ${cost:.4f}, ${self._budget:.4f} is left to "
                    "spend; raise spend_at_most or send fewer"
                )
            self._budget -= cost
        return embed_all(
            self._service,
            self.space(task),
            contents,
            lambda content: self._prepare(content, task),
            self._send,
            max_requests=MAX_REQUEST_CONTENTS,
            max_bytes=MAX_REQUEST_BYTES,
            progress=progress,
        )

    def _prepare(self, content: Content, task: Task) -> PreparedRequest[list[_Piece]]:
        pieces: list[_Piece] = []
        parts, failures = [], []
        prefix = PREFIX[task]
        remaining: dict[str, float] = {
            "text": TEXT_TOKENS,
            "image": IMAGES,
            "audio": AUDIO_SECONDS,
            "video": VIDEO_SECONDS,
        }
        readable_parts = list(readable(content, self.modalities, self._media.limits))
        sources = [part.source for _, part in readable_parts if not isinstance(part, Text | ContentError)]
        files = self._media.decoders.map(measure, sources, self._media.limits)
        for at, part in readable_parts:
            try:
                if isinstance(part, ContentError):
                    raise part
                if isinstance(part, Text):
                    pieces.append(_text(prefix + part.text, remaining))
                    prefix = ""
                else:
                    pieces.append(_file(part.modality, next(files), remaining))
                parts.append(at)
            except ContentError as error:
                failures.append((at, str(error)))
        size = sum(len(piece.encode()) if isinstance(piece, str) else len(piece.data) for piece in pieces)
        return PreparedRequest(pieces or None, tuple(parts), size, tuple(failures))

    def _send(self, requests: Sequence[list[_Piece]]) -> list[list[float]]:
        types, service = self._genai.types, self._service
        contents = [  # for a list of plain strings, the service returns one vector in all
            types.Content(
                parts=[
                    types.Part(text=piece)
                    if isinstance(piece, str)
                    else types.Part.from_bytes(data=piece.data, mime_type=piece.mime)
                    for piece in pieces
                ]
            )
            for pieces in requests
        ]
        config = types.EmbedContentConfig(output_dimensionality=self._dimension)
        try:
            response = service.call(
                lambda: self._client.models.embed_content(model=self._model, contents=contents, config=config)
            )
        except self._genai.errors.APIError as error:
            message = str(error.message or error.details)
            headers = getattr(error.response, "headers", {})
            delay = re.search(r"'retryDelay': '(\d+)", str(error.details))
            retry_after = retry_after_seconds(headers.get("Retry-After")) or float(delay[1] if delay else 0)
            status = 401 if "API_KEY_INVALID" in str(error.details) else error.code  # the service sends 400
            service.raise_for_status(status, message, retry_after)
        except (AttributeError, TypeError, ValueError):
            raise SpaceError(f"{service.place}: the response is not a list of embeddings; check base_url") from None
        return [list(embedding.values or ()) for embedding in response.embeddings or ()]


def _client(key: str, base_url: str | None, service: EmbeddingService, timeout: float) -> tuple[Any, Any]:
    """The package and its client, which does not retry and uses the HTTP client of the service."""
    try:
        from google import genai
        from google.genai import errors, types  # noqa: F401  # reached as genai.errors, genai.types
    except ImportError as error:
        raise missing_package("Gemini", "google-genai", "native") from error
    options = genai.types.HttpOptions(
        base_url=checked_base_url(base_url) if base_url else None,
        timeout=int(timeout * 1000),
        httpx_client=service.client,
    )
    return genai, genai.Client(vertexai=False, api_key=key, http_options=options)


def _text(text: str, remaining: dict[str, float]) -> str:
    """The text, cut to the remaining tokens, which are reduced. Raises ContentError when no token remains."""
    fits = bisect_right(range(1, len(text) + 1), remaining["text"], key=lambda n: _tokens(text[:n]))
    if not fits:
        raise ContentError(
            f"the text follows {TEXT_TOKENS:,} tokens of text, the maximum of the model for one content"
        )
    remaining["text"] -= _tokens(text[:fits])
    return text[:fits]


def measure(data: bytes, limits: Limits) -> tuple[Array, Array]:
    """The unchanged bytes of a file (n,) uint8, and its use of the limits of a content: one picture, or seconds.

    Runs in a worker. Raises ContentError when the file is too large, too long or damaged.
    """
    if len(data) > MAX_REQUEST_BYTES:
        raise ContentError(f"{len(data):,} bytes; Gemini takes {MAX_REQUEST_BYTES:,} in a request: make it smaller")
    kind, amount = _kind(data), 1.0
    if kind == "audio":
        amount = len(decode_audio(data, _within(limits, AUDIO_SECONDS), 8000, AUDIO_SECONDS)) / 8000
    elif kind == "video":
        decode_video(data, _within(limits, VIDEO_SECONDS), 1, 16, 8000, 1.0)
        amount = VIDEO_SECONDS
    return np.frombuffer(data, dtype=np.uint8), np.array(amount)


def _file(kind: Modality, measured: Prepared | ContentError, remaining: dict[str, float]) -> _File:
    """The file for a request; reduces `remaining`. Raises ContentError when the model does not accept it."""
    if isinstance(measured, ContentError):
        raise measured
    data, amount = bytes(np.asarray(measured[0])), float(np.asarray(measured[1]))
    if _kind(data) != kind:
        accepted = ", ".join(name for name, mime in MIME.items() if mime.startswith(kind))
        raise ContentError(f"{kind} as {sniff(data)}; Gemini takes {accepted}: convert it")
    if amount > remaining[kind]:
        allowed = f"{IMAGES} images" if kind == "image" else f"{kind} of {remaining[kind]:.0f} s more"
        raise ContentError(f"too much {kind}: Gemini takes {allowed} in one content; remove some parts")
    remaining[kind] -= amount
    return _File(data, MIME[sniff(data)], 0.0 if kind == "image" else amount)


def _kind(data: bytes) -> str:
    """image, audio or video; "" for a format that Gemini does not accept."""
    return MIME.get(sniff(data), "").partition("/")[0]


def _within(limits: Limits, seconds: float) -> Limits:
    return limits.model_copy(update={"seconds": min(limits.seconds, seconds)})


def _tokens(text: str) -> int:
    plain = len(text.encode("ascii", "ignore"))
    return math.ceil(plain / 4) + len(text) - plain
