"""Gemini Embedding 2 by its API (arXiv 2605.27295): text, pictures, sound and video interleaved in one space.

Its limits: 100 contents a request; of one content 8,192 tokens of text, 6 pictures, 180 s of sound, 120 s of video.
It looks at a video's pictures only: to be heard, the sound has to be sent as an Audio beside it. Retrieval and
similarity are told apart by words before the text, since this model takes no task_type.
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
from features.errors import ConfigError, ContentError, DependencyError, SpaceError
from features.progress import Step

MOST_CONTENTS = 100
MOST_BYTES = 14 * 2**20
"""Media of one request: it may be 20 MB, and base64 makes 4 bytes of 3."""

TEXT_TOKENS = 8192
IMAGES = 6
AUDIO_SECONDS = 180.0
VIDEO_SECONDS = 120.0

PREFIX: Mapping[Task, str] = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "similarity": "task: sentence similarity | query: ",
}
"""Before the first text of a content; a content without text goes without."""

SCHEME: Mapping[Task, str] = {"query": "retrieval", "document": "retrieval", "similarity": "similarity"}

MIME = {"png": "image/png", "jpeg": "image/jpeg", "mp3": "audio/mpeg", "wav": "audio/wav", "mp4": "video/mp4"}
"""Formats that the model takes."""

TOKENS_PER_IMAGE = 270
TOKENS_PER_AUDIO_SECOND = 32
TOKENS_PER_VIDEO_SECOND = 263
"""Upper bounds: those of the Gemini models in general, whose tokens an embedding is charged by."""


class Prices(NamedTuple):
    """Dollars per million tokens."""

    text: float
    image: float
    audio: float
    video: float


PRICES = {"gemini-embedding-2": Prices(text=0.20, image=0.45, audio=6.50, video=12.00)}
"""As tokencost.app quotes Google's page of March 2026; read on 2026-11-23. Check ai.google.dev/pricing."""


@dataclass(frozen=True)
class Estimate:
    """At most what contents cost. A video counts as long as the model takes, whatever its length."""

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
    """Contents as they are, parts interleaved, by google-genai.

    The texts of a content are cut where they pass 8,192 tokens, counted as four characters of ASCII or one other: the
    space says so. Parts that the model does not take are failures; the content is embedded from the rest.
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
        patience: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """dimension: 128 to 3072, tuned for 768, 1536 and 3072; api_key: None for GEMINI_API_KEY or GOOGLE_API_KEY.

        spend_at_most: dollars in the life of this encoder, by its own estimates; prices: of a model that PRICES does
        not know; timeout: seconds without a byte. Raises ConfigError, and DependencyError without google-genai.
        """
        key = api_key or os.environ.get("GEMINI_API_KEY") or os.environ.get("GOOGLE_API_KEY")
        if not key:
            raise ConfigError(f"{model}: no API key; set GEMINI_API_KEY")
        known = prices or PRICES.get(model)
        if known is None:
            raise ConfigError(f"{model}: its prices are not known ({', '.join(PRICES)} are); give prices")
        if not 128 <= dimension <= 3072:
            raise ConfigError(f"{model}: dimension {dimension}; 128 to 3072 can be had")
        self._media = media
        self._prices = known
        self._model = model
        self._dimension = dimension
        self._left = spend_at_most
        self._spending = Lock()
        self._service = EmbeddingService(model, key.strip(), patience, timeout)
        self._genai, self._client = _client(key.strip(), base_url, self._service, timeout)

    def space(self, task: Task = "document") -> SpaceKey:
        """The space of its vectors. Google tells no revision of a model: its name stands for it."""
        preprocessing = f"interleaved, texts cut at {TEXT_TOKENS} tokens"
        return SpaceKey(self._model, "api", self._dimension, SCHEME[task], preprocessing)

    def estimate(self, contents: Sequence[Content]) -> Estimate:
        """What they cost at most; reads their media, sends nothing."""
        tokens = {"text": 0, "image": 0, "audio": 0, "video": 0}
        images, seconds = 0, {"audio": 0.0, "video": 0.0}
        for content in contents:
            for piece in self._ready(content, "similarity").request or ():  # the longest prefix
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

        Media are read twice: for the estimate, which holds one content's at a time, and to be sent. Raises
        ConfigError, before anything is sent, when it would cost more than is left to spend, and SpaceError when the
        service does not answer as it should.
        """
        cost = self.estimate(contents).dollars
        with self._spending:
            if cost > self._left:
                raise ConfigError(
                    f"{self._model}: {len(contents)} contents may cost ${cost:.4f}, ${self._left:.4f} is left to "
                    "spend; raise spend_at_most or send fewer"
                )
            self._left -= cost
        return embed_all(
            self._service,
            self.space(task),
            contents,
            lambda content: self._ready(content, task),
            self._send,
            most=MOST_CONTENTS,
            most_bytes=MOST_BYTES,
            progress=progress,
        )

    def _ready(self, content: Content, task: Task) -> PreparedRequest[list[_Piece]]:
        pieces: list[_Piece] = []
        parts, failures = [], []
        prefix = PREFIX[task]
        room: dict[str, float] = {
            "text": TEXT_TOKENS,
            "image": IMAGES,
            "audio": AUDIO_SECONDS,
            "video": VIDEO_SECONDS,
        }
        found = list(readable(content, self.modalities, self._media.limits))
        sources = [part.source for _, part in found if not isinstance(part, Text | ContentError)]
        files = self._media.decoders.map(measure, sources, self._media.limits)
        for at, part in found:
            try:
                if isinstance(part, ContentError):
                    raise part
                if isinstance(part, Text):
                    pieces.append(_text(prefix + part.text, room))
                    prefix = ""
                else:
                    pieces.append(_file(part.modality, next(files), room))
                parts.append(at)
            except ContentError as error:
                failures.append((at, str(error)))
        size = sum(len(piece.encode()) if isinstance(piece, str) else len(piece.data) for piece in pieces)
        return PreparedRequest(pieces or None, tuple(parts), size, tuple(failures))

    def _send(self, requests: Sequence[list[_Piece]]) -> list[list[float]]:
        types, service = self._genai.types, self._service
        contents = [  # a list of bare strings would come back as one vector
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
            answer = service.call(
                lambda: self._client.models.embed_content(model=self._model, contents=contents, config=config)
            )
        except self._genai.errors.APIError as error:
            told = str(error.message or error.details)
            headers = getattr(error.response, "headers", {})
            delay = re.search(r"'retryDelay': '(\d+)", str(error.details))
            wait = retry_after_seconds(headers.get("Retry-After")) or float(delay[1] if delay else 0)
            status = 401 if "API_KEY_INVALID" in str(error.details) else error.code  # it comes as 400
            service.refuse(status, told, wait)
        except (AttributeError, TypeError, ValueError):
            raise SpaceError(f"{service.place}: what came is no list of embeddings; is base_url right?") from None
        return [list(embedding.values or ()) for embedding in answer.embeddings or ()]


def _client(key: str, base_url: str | None, service: EmbeddingService, timeout: float) -> tuple[Any, Any]:
    """The package and its client, which asks once and speaks through the service's connections."""
    try:
        from google import genai
        from google.genai import errors, types  # noqa: F401  # reached as genai.errors, genai.types
    except ImportError as error:
        raise DependencyError("Gemini needs google-genai: pip install 'recsys[native]'") from error
    options = genai.types.HttpOptions(
        base_url=checked_base_url(base_url) if base_url else None,
        timeout=int(timeout * 1000),
        httpx_client=service.client,
    )
    return genai, genai.Client(vertexai=False, api_key=key, http_options=options)


def _text(text: str, room: dict[str, float]) -> str:
    fits = bisect_right(range(1, len(text) + 1), room["text"], key=lambda n: _tokens(text[:n]))
    if not fits:
        raise ContentError(f"text after {TEXT_TOKENS:,} tokens of text, which is all the model takes of one content")
    room["text"] -= _tokens(text[:fits])
    return text[:fits]


def measure(data: bytes, limits: Limits) -> tuple[Array, Array]:
    """A file (n,) uint8 as it is, and what it takes of a content's room: one picture, or seconds; in a worker.

    Raises ContentError when it is too large, too long or damaged.
    """
    if len(data) > MOST_BYTES:
        raise ContentError(f"{len(data):,} bytes; Gemini takes {MOST_BYTES:,} in a request: make it smaller")
    kind, amount = _kind(data), 1.0
    if kind == "audio":
        amount = len(decode_audio(data, _within(limits, AUDIO_SECONDS), 8000, AUDIO_SECONDS)) / 8000
    elif kind == "video":
        decode_video(data, _within(limits, VIDEO_SECONDS), 1, 16, 8000, 1.0)
        amount = VIDEO_SECONDS
    return np.frombuffer(data, dtype=np.uint8), np.array(amount)


def _file(kind: Modality, measured: Prepared | ContentError, room: dict[str, float]) -> _File:
    if isinstance(measured, ContentError):
        raise measured
    data, amount = bytes(np.asarray(measured[0])), float(np.asarray(measured[1]))
    if _kind(data) != kind:
        taken = ", ".join(name for name, mime in MIME.items() if mime.startswith(kind))
        raise ContentError(f"{kind} as {sniff(data)}; Gemini takes {taken}: convert it")
    if amount > room[kind]:
        most = f"{IMAGES} images" if kind == "image" else f"{kind} of {room[kind]:.0f} s more"
        raise ContentError(f"one {kind} too many: Gemini takes {most} in one content; leave some out")
    room[kind] -= amount
    return _File(data, MIME[sniff(data)], 0.0 if kind == "image" else amount)


def _kind(data: bytes) -> str:
    """image, audio or video; "" of what Gemini does not take."""
    return MIME.get(sniff(data), "").partition("/")[0]


def _within(limits: Limits, seconds: float) -> Limits:
    return limits.model_copy(update={"seconds": min(limits.seconds, seconds)})


def _tokens(text: str) -> int:
    plain = len(text.encode("ascii", "ignore"))
    return math.ceil(plain / 4) + len(text) - plain
