"""Open models that run in this process, from the Hugging Face hub or a folder.

These are SigLIP, CLIP, CLAP, and models of sentence-transformers such as EmbeddingGemma 2. No code of a model is run:
weights are safetensors, never pickle, and its code files are not fetched.
"""

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
from features.errors import (
    ConfigError,
    ContentError,
    DependencyError,
    SpaceError,
    describe_os_error,
    detail,
    missing_package,
)
from features.progress import Step

Family = Literal["siglip", "clip", "clap", "sentence-transformers"]

PROMPTS: Mapping[Task, tuple[str, ...]] = {
    "document": ("document", "passage", "corpus"),
    "query": ("query",),
    "similarity": ("similarity", "STS"),
}
"""Names of the prompt of a task in config_sentence_transformers.json; the first existing one is used."""

CHUNK = 64
"""Number of contents between two calls of `progress`."""

BATCH = 16
"""Number of texts in one forward pass."""

MEDIA_BATCH = 8
"""Number of pictures or sounds in one forward pass: they are larger than texts, and decoded ones are queued."""

MAX_SIDE = 1024
"""Maximum longer side of a picture in pixels; workers scale larger ones down. The models read 224 to 896."""

MAX_ASPECT_RATIO = 50
"""Maximum ratio of the sides of a picture: a model that enlarges the shorter side enlarges the longer one as well."""

AUDIO_SECONDS = 30.0
"""Seconds of a sound that EmbeddingGemma 2 reads: 750 tokens of 40 ms."""


class _Model(Protocol):
    """A loaded model: `embed` returns (n, d) for n texts, pictures (h, w, 3) or sounds (samples,)."""

    modalities: frozenset[Modality]
    prompts: Mapping[str, str]
    specials: Sequence[str]
    rate: int
    seconds: float

    def embed(self, kind: Modality, values: Sequence[Any], prompt: str) -> Floats: ...


def image_pixels(data: bytes, limits: Limits) -> Pixels:
    """Frames (f, h, w, 3) uint8 of a picture or an animation. Raises ContentError above MAX_ASPECT_RATIO.

    Runs in a worker.
    """
    frames = decode_image(data, limits, longest=MAX_SIDE)
    height, width = frames.shape[1:3]
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ContentError(
            f"a picture of {width} x {height} pixels exceeds a side ratio of {MAX_ASPECT_RATIO}; crop it"
        )
    return frames


class HubEncoder:
    """Embeds each part of a content alone; the vector of a content is the unit mean of the unit vectors of its parts.

    The vector of an animation is the unit mean of its frames. Files are decoded by the workers of `media`. Text that
    spells a special token of the model, such as "[SEP]" or "<image>", is split, so that it is read as plain text.
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
        """model: a folder, or a name on the hub with a revision, preferably a commit (HF_HUB_OFFLINE is obeyed).

        dimension: number of coordinates to keep, for models with Matryoshka training; device: None for a GPU if there
        is one. Raises ConfigError, SpaceError when the model cannot be fetched or loaded, and DependencyError.
        """
        folder, name, exact = locate(model, revision)
        self._media = media
        self._model = _load(folder, family, device)
        self._lock = Lock()  # tokenizers are not safe for threads, and torch uses all cores by itself
        self.modalities = self._model.modalities
        picture_limit = f", pictures of at most {MAX_SIDE} pixels a side" if "image" in self.modalities else ""
        sound_limit = f", {self._model.seconds:g} s of sound" if "audio" in self.modalities else ""
        d = self._model.embed("text", ["length"], "").shape[1]
        full_space = SpaceKey(name, exact, d, preprocessing=f"unit mean of parts{picture_limit}{sound_limit}")
        self._space = full_space.cut(dimension or d)

    def space(self, task: Task = "document") -> SpaceKey:
        """The space of its vectors. Similarity has its own space if the model has a prompt for it."""
        if not any(self._prompt(name) for name in PROMPTS):
            return self._space
        separate = task == "similarity" and self._prompt(task) != self._prompt("document")
        return replace(self._space, prompt="similarity" if separate else "retrieval")

    def encode(
        self, contents: Sequence[Content], *, task: Task = "document", progress: Step | None = None
    ) -> Embedded:
        """One vector for each content. Raises SpaceError when the model returns numbers that are not finite."""
        space, prompt = self.space(task), self._prompt(task)
        sums = np.zeros((len(contents), space.dimension), dtype=np.float32)
        failures: list[Failure] = []
        for start in range(0, len(contents), CHUNK):
            chunk = contents[start : start + CHUNK]
            for kind in sorted(self.modalities):
                part_sums, failed = self._sum(kind, chunk, prompt)
                sums[start : start + CHUNK] += part_sums
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
        """(n, d) sums of the unit vectors of the parts of one modality, and the parts that could not be read."""
        d, model, forward = self._space.dimension, self._model, partial(self._forward, kind, prompt)
        if kind == "text":
            return sum_texts(contents, forward, d, self._media.limits)
        prepare = image_pixels if kind == "image" else partial(stretch, rate=model.rate, seconds=model.seconds)
        return self._media.sum(contents, frozenset({kind}), prepare, forward, d, batch=MEDIA_BATCH)

    def _forward(self, kind: Modality, prompt: str, values: Sequence[Any]) -> Floats:
        if kind == "text":
            values = [_plain(text, self._model.specials) for text in values]
        with self._lock:
            vectors = self._model.embed(kind, values, prompt)
        if not np.isfinite(vectors).all():
            raise SpaceError(f"{self._space.model}: returns vectors that are not finite; try another device")
        return vectors[:, : self._space.dimension]


class _TwoTowerModel:
    """A two-tower model of transformers: texts, and pictures or sounds, in one space."""

    prompts: Mapping[str, str] = {}

    def __init__(self, folder: Path, family: str, device: str) -> None:
        import torch
        from transformers import AutoConfig, AutoModel, AutoProcessor

        kind = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
        if kind not in (family, f"{family}2"):
            raise ConfigError(f"{folder.name}: is a {kind} model, but family is {family}; set family")
        safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        loaded = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **safe)
        self._torch, self._model = torch, loaded.to(device).eval()
        self._processor: Any = AutoProcessor.from_pretrained(folder, **safe)  # type: ignore[no-untyped-call]
        tokenizer, text = self._processor.tokenizer, self._model.config.text_config
        unused = text.pad_token_id + 1 if family == "clap" else 0  # the first position of RoBERTa
        longest = min(tokenizer.model_max_length, text.max_position_embeddings - unused)
        self._text = {"truncation": True, "max_length": longest, "padding": True}
        if family == "siglip":
            self._text["padding"] = "max_length"  # as in training
        self.specials = tokenizer.all_special_tokens
        self.rate, self.seconds = 0, 0.0
        self.modalities: frozenset[Modality] = frozenset({"text", "image"})
        if family == "clap":
            self.modalities = frozenset({"text", "audio"})
            self.rate = self._processor.feature_extractor.sampling_rate
            self.seconds = float(self._processor.feature_extractor.max_length_s)

    def embed(self, kind: Modality, values: Sequence[Any], prompt: str) -> Floats:
        outputs = []
        for start in range(0, len(values), BATCH):
            batch = values[start : start + BATCH]
            if kind == "text":
                inputs = dict(self._processor.tokenizer(batch, return_tensors="pt", **self._text))
            else:
                prepared = [self._prepare(kind, value) for value in batch]
                inputs = {name: self._torch.cat([item[name] for item in prepared]) for name in prepared[0]}
            inputs = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
            with self._torch.inference_mode():
                features = getattr(self._model, f"get_{kind}_features")(**inputs)
            outputs.append(features.pooler_output.float().cpu().numpy())
        return np.concatenate(outputs)

    def _prepare(self, kind: Modality, value: Any) -> Any:
        if kind == "image":
            return self._processor.image_processor(value, input_data_format="channels_last", return_tensors="pt")
        features = self._processor.feature_extractor(value, sampling_rate=self.rate, return_tensors="pt")
        features["is_longer"] = self._torch.zeros_like(features["is_longer"])  # the extractor sets a random one
        return features


class _SentenceModel:
    """A model of sentence-transformers, with the prompts of its configuration."""

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
        inputs = [{kind: value} for value in values]  # a plain text that looks like a URL or a file would be opened
        size = BATCH if kind == "text" else 1  # Gemma's processor merges several pictures into one content
        vectors: Floats = self._model.encode(inputs, prompt=prompt, batch_size=size, show_progress_bar=False)
        return vectors


def _load(folder: Path, family: Family, device: str | None) -> _Model:
    try:
        import torch
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]  # it would interrupt the progress bar of the job
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return (
            _SentenceModel(folder, device)
            if family == "sentence-transformers"
            else _TwoTowerModel(folder, family, device)
        )
    except ImportError as error:
        if error.name:
            raise missing_package(folder.name, error.name, "native") from error
        raise DependencyError(  # transformers raises one that names no module
            f"{folder.name}: it needs a package that is missing or of another version: install this project with the "
            f"extra `native`{detail(error)}"
        ) from error
    except ConfigError:
        raise
    except Exception as error:  # a damaged folder raises exceptions of many classes
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error):
            raise
        if isinstance(error, OSError) and error.errno:
            why = describe_os_error(error)
        elif not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            why = "it has no config.json: name the folder of a model"
        else:
            why = "its files are damaged, or not of this kind: fetch the model again, or set another `encoder.kind`"
        raise SpaceError(f"{folder}: cannot be loaded as {family}: {why}") from error


def _plain(text: str, specials: Sequence[str]) -> str:
    """The text with a space inside each special token, so that the tokenizer does not recognise it."""
    for token in specials:
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
