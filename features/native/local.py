"""Open models in this process, from the Hugging Face hub or a folder: SigLIP, CLIP, CLAP, and EmbeddingGemma 2 and
others by sentence-transformers. Nothing of a model is run: weights are safetensors, never pickle, and code that
comes with it is not even fetched."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from features.content import Audio, Content, Image, Limits, Modality, Part, Text
from features.errors import ConfigError, ContentError, DependencyError, SpaceError
from features.fetch import read
from features.native.hub import locate
from features.native.remote import check_unicode
from features.progress import Step
from features.spaces import Embedded, Failure, Floats, SpaceKey, Task, unit

Family = Literal["siglip", "clip", "clap", "sentence-transformers"]

PROMPTS: Mapping[Task, tuple[str, ...]] = {
    "document": ("document", "passage", "corpus"),
    "query": ("query",),
    "similarity": ("similarity", "STS"),
}
"""Names under which config_sentence_transformers.json keeps the prompt of a task, the first that is there."""

CHUNK = 32
"""Contents that are held, prepared, in memory at once."""

BATCH = 16
"""Parts that go through the model at once."""

LONGEST = 50
"""A picture's longer side over its shorter one: a model that scales the shorter one blows the longer one up."""

AUDIO_SECONDS = 30.0
"""What EmbeddingGemma 2 hears of a sound: 750 tokens of 40 ms."""


class _Model(Protocol):
    """A loaded model: prepare makes a value small and ready, embed makes (n, d) of n of them."""

    modalities: frozenset[Modality]
    prompts: Mapping[str, str]
    specials: Sequence[str]
    rate: int
    seconds: float

    def prepare(self, kind: Modality, value: Any) -> Any: ...

    def embed(self, kind: Modality, prepared: list[Any], prompt: str) -> Floats: ...


class HubEncoder:
    """Each part of a content embedded alone, an animation by its frames; the content is the unit mean of its parts'
    unit vectors.

    Text that spells a special token of the model, such as "[SEP]" or "<image>", is pulled apart: words stay words.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        *,
        family: Family,
        dimension: int | None = None,
        device: str | None = None,
        limits: Limits = Limits(),  # noqa: B008  # frozen
    ) -> None:
        """model: a folder, or a name on the hub with its revision, best a commit (HF_HUB_OFFLINE is obeyed).

        dimension: cut to so many coordinates, for models trained as Matryoshka; device: None for a GPU where there is
        one. Raises ConfigError, SpaceError when the model cannot be had, and DependencyError.
        """
        folder, name, exact = locate(model, revision)
        self._limits = limits
        self._model = _load(folder, family, device)
        self.modalities = self._model.modalities
        heard = f", {self._model.seconds:g} s of sound" if "audio" in self.modalities else ""
        d = self._model.embed("text", [self._model.prepare("text", "length")], "").shape[1]
        whole = SpaceKey(name, exact, d, preprocessing=f"unit mean of parts{heard}")
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
        space = self.space(task)
        made: list[Floats] = []
        failures: list[Failure] = []
        for start in range(0, len(contents), CHUNK):
            chunk = contents[start : start + CHUNK]
            made.append(self._chunk(chunk, start, self._prompt(task), failures))
            if progress:
                progress(len(chunk))
        vectors = np.concatenate([np.zeros((0, space.dimension), np.float32), *made])
        return Embedded(space, vectors, np.asarray(vectors.any(axis=1)), tuple(failures))

    def _prompt(self, task: Task) -> str:
        for name in PROMPTS[task]:
            if prompt := self._model.prompts.get(name):
                return prompt
        return self._prompt("document") if task == "similarity" else ""

    def _chunk(self, contents: Sequence[Content], start: int, prompt: str, failures: list[Failure]) -> Floats:
        """(n, d) unit rows, zeros where there is nothing."""
        d = self._space.dimension
        owners: list[int] = []  # part -> content
        waiting: dict[Modality, tuple[list[int], list[Any]]] = {}  # kind -> (parts, what is prepared of them)
        for row, content in enumerate(contents):
            for at, part in enumerate(content.parts):
                if part.modality not in self.modalities or (isinstance(part, Text) and not part.text.strip()):
                    continue
                try:
                    ready = [self._model.prepare(part.modality, value) for value in self._values(part)]
                except ContentError as error:
                    failures.append(Failure(start + row, at, str(error)))
                    continue
                parts, prepared = waiting.setdefault(part.modality, ([], []))
                parts.extend([len(owners)] * len(ready))
                prepared.extend(ready)
                owners.append(row)
        by_part = np.zeros((len(owners), d), dtype=np.float32)
        for kind, (parts, prepared) in waiting.items():
            vectors = self._model.embed(kind, prepared, prompt)
            if not np.isfinite(vectors).all():
                raise SpaceError(f"{self._space.model}: makes vectors that are not finite; try another device")
            np.add.at(by_part, parts, unit(vectors[:, :d]))
        out = np.zeros((len(contents), d), dtype=np.float32)
        np.add.at(out, owners, unit(by_part))
        return unit(out)

    def _values(self, part: Part) -> Iterator[Any]:
        """What is embedded of a part: one text, the frames (h, w, 3) of a picture, or one sound (n,)."""
        if isinstance(part, Text):
            yield _plain(part.text, self._model.specials)
            return
        from features.decode import decode_audio, decode_image

        data = read(part.source, self._limits)
        if isinstance(part, Image):
            for frame in decode_image(data, self._limits):
                if max(frame.shape[:2]) > LONGEST * min(frame.shape[:2]):
                    raise ContentError(f"a picture of {frame.shape[1]} x {frame.shape[0]} pixels is a line; crop it")
                yield frame
        elif isinstance(part, Audio):
            yield decode_audio(data, self._limits, self._model.rate, self._model.seconds)


class _Towers:
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

    def prepare(self, kind: Modality, value: Any) -> Any:
        if kind == "image":
            return self._processor.image_processor(value, input_data_format="channels_last", return_tensors="pt")
        if kind == "audio":
            made = self._processor.feature_extractor(value, sampling_rate=self.rate, return_tensors="pt")
            made["is_longer"] = self._torch.zeros_like(made["is_longer"])  # it draws one at random otherwise
            return made
        return value

    def embed(self, kind: Modality, prepared: list[Any], prompt: str) -> Floats:
        made = []
        for start in range(0, len(prepared), BATCH):
            batch = prepared[start : start + BATCH]
            if kind == "text":
                inputs = dict(self._processor.tokenizer(batch, return_tensors="pt", **self._text))
            else:
                inputs = {name: self._torch.cat([one[name] for one in batch]) for name in batch[0]}
            inputs = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
            with self._torch.inference_mode():
                features = getattr(self._model, f"get_{kind}_features")(**inputs)
            made.append(features.pooler_output.float().cpu().numpy())
        return np.concatenate(made)


class _Sentences:
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

    def prepare(self, kind: Modality, value: Any) -> Any:
        # named, since a bare text that looks like a URL or a file would be opened
        return {kind: {"array": value, "sampling_rate": self.rate} if kind == "audio" else value}

    def embed(self, kind: Modality, prepared: list[Any], prompt: str) -> Floats:
        size = BATCH if kind == "text" else 1  # Gemma's processor takes several pictures for one content's
        made: Floats = self._model.encode(prepared, prompt=prompt, batch_size=size, show_progress_bar=False)
        return made


def _load(folder: Path, family: Family, device: str | None) -> _Model:
    try:
        import torch
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]  # it would break into ours
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return _Sentences(folder, device) if family == "sentence-transformers" else _Towers(folder, family, device)
    except ImportError as error:
        missing = f"needs {error.name}: pip install 'recsys[native]'" if error.name else " ".join(str(error).split())
        raise DependencyError(f"{folder.name}: {missing[:300]}") from error  # transformers names no module
    except ConfigError:
        raise
    except Exception as error:  # a damaged folder shows in every way
        raise SpaceError(f"{folder}: cannot be loaded as {family}: {error}") from error


def _plain(text: str, specials: Sequence[str]) -> str:
    check_unicode(text)
    for token in specials:
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
