"""Embeds texts by a server with OpenAI's POST /embeddings: vLLM, Text Embeddings Inference, llama.cpp, OpenAI."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import httpx2

from features.content.encoders.remote import (
    DEFAULT_RETRY,
    EmbeddingService,
    PreparedRequest,
    RetryPolicy,
    checked_base_url,
    embed_all,
    retry_after_seconds,
)
from features.content.parts import Content, Limits, Modality, Text, readable
from features.content.spaces import Embedded, SpaceKey, Task
from features.errors import SpaceError
from features.progress import Step

MAX_REQUEST_BYTES = 4 * 2**20
"""Maximum size of the texts of one request, in bytes."""


class OpenAICompatibleEncoder:
    """Embeds texts by https://platform.openai.com/docs/api-reference/embeddings, without task prompts.

    The texts of a content are joined by line breaks. A text that the server rejects, e.g. since it is too long for
    the model, is a failure. The protocol has no revision of a model: the address is the revision of the space.
    """

    modalities: frozenset[Modality] = frozenset({"text"})
    reader = ""

    def __init__(
        self,
        limits: Limits,
        base_url: str,
        model: str,
        dimension: int | None = None,
        *,
        api_key: str | None = None,
        batch: int = 64,
        timeout: float = 60.0,
        retry_policy: RetryPolicy = DEFAULT_RETRY,
    ) -> None:
        """base_url: address up to /v1; dimension: requested from the server; None: the dimension of the model.

        api_key: None for OPENAI_API_KEY, if it is set; batch: maximum number of texts in one request; timeout:
        seconds without a byte. Raises ConfigError when the address or the key is invalid.
        """
        key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip() or None
        self._limits = limits
        self._url = checked_base_url(base_url)
        self._model = model
        self._dimension = dimension
        self._batch = batch
        self._service = EmbeddingService(f"{model} at {self._url}", key, retry_policy, timeout)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def space(self, task: Task = "document") -> SpaceKey:
        """The space of its vectors; without a `dimension`, one request determines it."""
        host = self._url.partition("://")[2]
        return SpaceKey(self._model, host, self._length, preprocessing="texts of a content joined by line breaks")

    @cached_property
    def _length(self) -> int:
        if self._dimension is not None:
            return self._dimension
        return len(self._service.retry_policy.run(self._service.place, lambda: self._send(["length"]))[0])

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        """One vector for each content. Raises SpaceError when the server does not return them."""
        return embed_all(
            self._service,
            self.space(task),
            contents,
            self._prepare,
            self._send,
            max_requests=self._batch,
            max_bytes=MAX_REQUEST_BYTES,
            progress=progress,
        )

    def _prepare(self, content: Content) -> PreparedRequest[str]:
        parts, texts, failures = [], [], []
        for at, part in readable(content, self.modalities, self._limits):
            if isinstance(part, Text):
                parts.append(at)
                texts.append(part.text)
            else:
                failures.append((at, str(part)))
        joined = "\n".join(texts)
        return PreparedRequest(joined or None, tuple(parts), len(joined.encode()), tuple(failures))

    def _send(self, texts: Sequence[str]) -> list[list[float]]:
        request: dict[str, Any] = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        if self._dimension is not None:
            request["dimensions"] = self._dimension
        service = self._service
        response = service.call(
            lambda: service.client.post(f"{self._url}/embeddings", json=request, headers=self._headers)
        )
        if response.status_code != httpx2.codes.OK:
            service.raise_for_status(
                response.status_code, response.text, retry_after_seconds(response.headers.get("Retry-After"))
            )
        body = service.call(response.json)
        try:
            by_index = {entry["index"]: list(entry["embedding"]) for entry in body["data"]}
            return [by_index[at] for at in range(max(len(texts), len(body["data"])))]
        except (KeyError, TypeError):
            raise SpaceError(
                f"{service.place}: {len(texts)} texts were sent, and the response is not one vector for each index: "
                f"{service.sanitised(response.text)}"
            ) from None
