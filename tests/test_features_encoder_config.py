"""Configurations open encoders, which use the limits and workers of the caller."""

from typing import Any

import numpy as np
import pytest
from fake_embeddings import FakeEmbeddings, unit
from pydantic import TypeAdapter, ValidationError
from test_features_encoders_hub_models import sentences

from features.content.encoder_config import EncoderConfig, open_encoders
from features.content.encoders.frozen import Media
from features.content.media.decoder_pool import DecoderPool
from features.content.parts import Content, Image, Limits, Text
from features.errors import ConfigError

LIMITS = Limits(parts=2, text_bytes=10)
NO_DECODERS: Any = None


@pytest.fixture
def open_config(tmp_path):
    """A function that opens the encoders of a configuration."""
    with DecoderPool(1) as decoders:
        yield lambda **fields: open_encoders(
            TypeAdapter(EncoderConfig).validate_python(fields), decoders, LIMITS, tmp_path / "models"
        )


@pytest.mark.parametrize("multilingual", [False, True])
def test_builtin(open_config, tmp_path, multilingual):
    encoders = open_config(kind="builtin", multilingual=multilingual)
    assert list(encoders) == ["text", "image", "speech", "sound"]
    assert ("e5" in encoders["text"].space().model) == multilingual
    assert encoders["speech"].space() == encoders["text"].space()
    assert not (tmp_path / "models").exists()  # a model is loaded at its first use


def test_disabled_channels(open_config):
    assert list(open_config(kind="builtin", without=["image", "speech"])) == ["text", "sound"]
    with pytest.raises(ValidationError, match="without"):
        open_config(kind="builtin", without=["smell"])


def test_each_encoder_enforces_the_limits(open_config, tmp_path):
    contents = [Content.of(Text("red cat"), Text("a dog and a cat"), Text("late")), Content.of(Image(b"broken"))]
    with FakeEmbeddings(8) as server:
        configs = [
            {"kind": "sentence-transformers", "model": str(sentences(tmp_path, None))},
            {"kind": "openai-compatible", "base_url": server.url + "/v1", "model": "toy", "dimension": 8},
        ]
        for fields in configs:
            ((name, encoder),) = open_config(**fields).items()
            embedded = encoder.encode(contents)
            assert name == "content"
            assert embedded.present.tolist() == [True, False]
            assert [(f.row, f.part) for f in embedded.failures] == [(0, 1), (0, 2)]
        np.testing.assert_allclose(embedded.vectors[0], unit("red cat", 8), atol=1e-6)


def test_gemini_spends_at_most_the_configured_budget(open_config, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "key")
    encoder = open_config(kind="gemini", dimension=128, spend_at_most=0.0)["content"]
    assert encoder.space().dimension == 128
    with pytest.raises(ConfigError, match=r"\$0.0000 is left to spend"):
        encoder.encode([Content.of(Text("word"))])
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="set GEMINI_API_KEY"):
        open_config(kind="gemini")


@pytest.mark.parametrize("fields", [{"kind": "own"}, {"kind": "builtin", "model": "x"}, {"kind": "clip"}, {}])
def test_an_invalid_configuration(open_config, fields):
    with pytest.raises(ValidationError):
        open_config(**fields)


def test_each_kind_of_encoder_gets_its_settings(tmp_path, monkeypatch):
    opened = []
    limits, decoders = Limits(parts=3), NO_DECODERS

    def recorded(name):
        def make(*given, **named):
            first = given[0].limits if isinstance(given[0], Media) else given[0]
            opened.append((name, first, given[1:], named))
            return name

        return make

    monkeypatch.setattr("features.content.encoders.hub_models.HubEncoder", recorded("hub"))
    monkeypatch.setattr("features.content.encoders.gemini.GeminiEncoder", recorded("gemini"))
    monkeypatch.setattr("features.content.encoders.openai_compatible.OpenAICompatibleEncoder", recorded("openai"))
    for fields in (
        {"kind": "clip", "model": "m", "revision": "r", "dimension": 7},
        {"kind": "gemini"},
        {"kind": "gemini", "model": "g", "dimension": 1536, "spend_at_most": 0.5},
        {"kind": "openai-compatible", "base_url": "http://a/v1", "model": "m", "dimension": 5},
    ):
        config = TypeAdapter(EncoderConfig).validate_python(fields)
        assert list(open_encoders(config, decoders, limits, tmp_path)) == ["content"]
    assert opened == [
        ("hub", limits, ("m", "r"), {"family": "clip", "dimension": 7}),
        ("gemini", limits, ("gemini-embedding-2", 768), {"spend_at_most": 1.0}),
        ("gemini", limits, ("g", 1536), {"spend_at_most": 0.5}),
        ("openai", limits, ("http://a/v1", "m", 5), {}),
    ]


def test_without_its_package_the_channel_sound_is_left_out_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    config = TypeAdapter(EncoderConfig).validate_python({"kind": "builtin"})
    for installed, channels in ((True, ["text", "image", "speech", "sound"]), (False, ["text", "image", "speech"])):
        caplog.clear()
        monkeypatch.setattr("features.content.encoders.sounds.installed", lambda installed=installed: installed)
        with caplog.at_level("WARNING"):
            assert list(open_encoders(config, NO_DECODERS, Limits(), tmp_path)) == channels
        assert ("channel sound is left out: it needs the package aisfx" in caplog.text) != installed
