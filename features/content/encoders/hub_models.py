"""Open models in this process, from the Hugging Face hub or a folder: SigLIP, CLIP, CLAP, and EmbeddingGemma 2 and
others by sentence-transformers. Nothing of a model is run: weights are safetensors, never pickle, and code that
comes with it is not even fetched."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Protocol

import numpy as np

from features.arrays import Floats
from features.content.encoders.frozen import Media
from features.content.encoders.hub import locate
from features.content.encoders.speech import stretch
from features.content.encoders.text import sum_texts
from features.content.media.images import Pixels, decode_image
from features.content.parts import Content, Limits, Modality
from features.content.spaces import Embedded, Failure, SpaceKey, Task, mean_of_parts
from features.errors import ConfigError, ContentError, DependencyError, SpaceError
from features.progress import Step

Family = Literal["siglip", "clip", "clap", "sentence-transformers"]

PROMPTS: Mapping[Task, tuple[str, ...]] = {
    "document": ("document", "passage", "corpus"),
    "query": ("query",),
    "similarity": ("similarity", "STS"),
}
"""Names under which config_sentence_transformers.json keeps the prompt of a task, the first that is there."""

CHUNK = 64
"""Contents between two reports of progress."""

BATCH = 16
"""Texts that go through the model at once."""

MEDIA_BATCH = 8
"""Pictures or sounds that go through the model at once: they are larger, and others wait, decoded."""

MAX_SIDE = 1024
"""Pixels of a picture's longer side; a larger one is shrunk in the worker. The models themselves take 224 to 896."""

MAX_ASPECT_RATIO = 50
"""A picture's longer side over its shorter one: a model that scales the shorter one blows the longer one up."""

AUDIO_SECONDS = 30.0
"""What EmbeddingGemma 2 hears of a sound: 750 tokens of 40 ms."""


class _Model(Protocol):
    """A loaded model: embed makes (n, d) of n texts, pictures (h, w, 3) or sounds (n,)."""

    modalities: frozenset[Modality]
    prompts: Mapping[str, str]
    specials: Sequence[str]
    rate: int
    seconds: float

    def embed(self, kind: Modality, values: Sequence[Any], prompt: str) -> Floats: ...


def picture(data: bytes, limits: Limits) -> Pixels:
    """Frames (f, h, w, 3) uint8 of a picture or an animation, in a worker. Raises ContentError for a line."""
    frames = decode_image(data, limits, longest=MAX_SIDE)
    height, width = frames.shape[1:3]
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ContentError(f"a picture of {width} x {height} pixels is a line; crop it")
    return frames


class HubEncoder:
    """Each part of a content embedded alone, an animation by its frames; the content is the unit mean of its parts'
    unit vectors.

    Files are decoded by the workers of `media`. Text that spells a special token of the model, such as "[SEP]" or
    "<image>", is pulled apart: words stay words.
    """

    reader = ""

    def __init__(
        self,
        media: Media,
        model: str,
        revision: str | None = None,
        *,
        family: Family,
        dimension: int | None = None,
        device: str | None = None,
    ) -> None:
        """model: a folder, or a name on the hub with its revision, best a commit (HF_HUB_OFFLINE is obeyed).

        dimension: cut to so many coordinates, for models trained as Matryoshka; device: None for a GPU where there is
        one. Raises ConfigError, SpaceError when the model cannot be had, and DependencyError.
        """
        folder, name, exact = locate(model, revision)
        self._media = media
        self._model = _load(folder, family, device)
        self._turn = Lock()  # tokenizers are not to be shared by threads, and torch uses all cores by itself
        self.modalities = self._model.modalities
        seen = f", pictures of at most {MAX_SIDE} pixels a side" if "image" in self.modalities else ""
        heard = f", {self._model.seconds:g} s of sound" if "audio" in self.modalities else ""
        d = self._model.embed("text", ["length"], "").shape[1]
        whole = SpaceKey(name, exact, d, preprocessing=f"unit mean of parts{seen}{heard}")
        self._space = whole.cut(dimension or d)

    def space(self, task: Task = "document") -> SpaceKey:
        """The space of its vectors. Similarity is a space apart where the model has a prompt for it."""
        if not any(self._prompt(each) for each in PROMPTS):
            return self._space
        apart = task == "similarity" and self._prompt(task) != self._prompt("document")
        return replace(self._space, prompt="similarity" if apart else "retrieval")

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        """One vector for each content. Raises SpaceError when the model gives numbers that are none."""
        space, prompt = self.space(task), self._prompt(task)
        sums = np.zeros((len(contents), space.dimension), dtype=np.float32)
        failures: list[Failure] = []
        for start in range(0, len(contents), CHUNK):
            chunk = contents[start : start + CHUNK]
            for kind in sorted(self.modalities):
                made, failed = self._sum(kind, chunk, prompt)
                sums[start : start + CHUNK] += made
                failures += [replace(failure, row=start + failure.row) for failure in failed]
            if progress:
                progress(len(chunk))
        return mean_of_parts(space, sums, failures)

    def _prompt(self, task: Task) -> str:
        for name in PROMPTS[task]:
            if prompt := self._model.prompts.get(name):
                return prompt
        return self._prompt("document") if task == "similarity" else ""

    def _sum(self, kind: Modality, contents: Sequence[Content], prompt: str) -> tuple[Floats, list[Failure]]:
        """(n, d) sums of the unit vectors of their parts of one kind, and what cannot be read."""
        d, model, forward = self._space.dimension, self._model, partial(self._forward, kind, prompt)
        if kind == "text":
            return sum_texts(contents, forward, d, self._media.limits)
        prepare = picture if kind == "image" else partial(stretch, rate=model.rate, seconds=model.seconds)
        return self._media.sum(contents, frozenset({kind}), prepare, forward, d, batch=MEDIA_BATCH)

    def _forward(self, kind: Modality, prompt: str, values: Sequence[Any]) -> Floats:
        if kind == "text":
            values = [_plain(text, self._model.specials) for text in values]
        with self._turn:
            vectors = self._model.embed(kind, values, prompt)
        if not np.isfinite(vectors).all():
            raise SpaceError(f"{self._space.model}: makes vectors that are not finite; try another device")
        return vectors[:, : self._space.dimension]


class _TwoTowerModel:
    """Two towers of transformers into one space: text, and pictures or sounds."""

    prompts: Mapping[str, str] = {}

    def __init__(self, folder: Path, family: str, device: str) -> None:
        import torch
        from transformers import AutoConfig, AutoModel, AutoProcessor

        kind = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
        if kind not in (family, f"{family}2"):
            raise ConfigError(f"{folder.name}: is a {kind} model, family says {family}; set family")
        safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        loaded = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **safe)
        self._torch, self._model = torch, loaded.to(device).eval()
        self._processor: Any = AutoProcessor.from_pretrained(folder, **safe)  # type: ignore[no-untyped-call]
        tokenizer, text = self._processor.tokenizer, self._model.config.text_config
        unused = text.pad_token_id + 1 if family == "clap" else 0  # RoBERTa counts positions from there
        longest = min(tokenizer.model_max_length, text.max_position_embeddings - unused)
        self._text = {"truncation": True, "max_length": longest, "padding": True}
        if family == "siglip":
            self._text["padding"] = "max_length"  # as it was trained
        self.specials = tokenizer.all_special_tokens
        self.rate, self.seconds = 0, 0.0
        self.modalities: frozenset[Modality] = frozenset({"text", "image"})
        if family == "clap":
            self.modalities = frozenset({"text", "audio"})
            self.rate = self._processor.feature_extractor.sampling_rate
            self.seconds = float(self._processor.feature_extractor.max_length_s)

    def embed(self, kind: Modality, values: Sequence[Any], prompt: str) -> Floats:
        made = []
        for start in range(0, len(values), BATCH):
            batch = values[start : start + BATCH]
            if kind == "text":
                inputs = dict(self._processor.tokenizer(batch, return_tensors="pt", **self._text))
            else:
                ready = [self._ready(kind, value) for value in batch]
                inputs = {name: self._torch.cat([one[name] for one in ready]) for name in ready[0]}
            inputs = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
            with self._torch.inference_mode():
                features = getattr(self._model, f"get_{kind}_features")(**inputs)
            made.append(features.pooler_output.float().cpu().numpy())
        return np.concatenate(made)

    def _ready(self, kind: Modality, value: Any) -> Any:
        if kind == "image":
            return self._processor.image_processor(value, input_data_format="channels_last", return_tensors="pt")
        made = self._processor.feature_extractor(value, sampling_rate=self.rate, return_tensors="pt")
        made["is_longer"] = self._torch.zeros_like(made["is_longer"])  # it draws one at random otherwise
        return made


class _SentenceModel:
    """What sentence-transformers loads, with the prompts of its own configuration."""

    def __init__(self, folder: Path, device: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        # EmbeddingGemma overflows in float16
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self._model = SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": dtype},
        )
        self.prompts: Mapping[str, str] = self._model.prompts
        processor: Any = self._model[0].processor
        self.specials = getattr(processor, "tokenizer", processor).all_special_tokens
        self.rate = getattr(getattr(processor, "feature_extractor", None), "sampling_rate", 0)
        self.seconds = AUDIO_SECONDS
        self.modalities: frozenset[Modality] = frozenset(
            kind for kind in ("text", "image", "audio") if kind in self._model.modalities
        )

    def embed(self, kind: Modality, values: Sequence[Any], prompt: str) -> Floats:
        if kind == "audio":
            values = [{"array": value, "sampling_rate": self.rate} for value in values]
        named = [{kind: value} for value in values]  # a bare text that looks like a URL or a file would be opened
        size = BATCH if kind == "text" else 1  # Gemma's processor takes several pictures for one content's
        made: Floats = self._model.encode(named, prompt=prompt, batch_size=size, show_progress_bar=False)
        return made


def _load(folder: Path, family: Family, device: str | None) -> _Model:
    try:
        import torch
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]  # it would break into ours
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return (
            _SentenceModel(folder, device)
            if family == "sentence-transformers"
            else _TwoTowerModel(folder, family, device)
        )
    except ImportError as error:
        missing = f"needs {error.name}: pip install 'recsys[native]'" if error.name else " ".join(str(error).split())
        raise DependencyError(f"{folder.name}: {missing[:300]}") from error  # transformers names no module
    except ConfigError:
        raise
    except Exception as error:  # a damaged folder shows in every way
        raise SpaceError(f"{folder}: cannot be loaded as {family}: {error}") from error


def _plain(text: str, specials: Sequence[str]) -> str:
    for token in specials:
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
