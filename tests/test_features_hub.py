"""The files of a model in a folder: which are hashed, and which are refused."""

import hashlib
from pathlib import Path

import httpx2
import pytest

from features.content.encoders.hub import FETCHED, locate
from features.errors import ConfigError, SpaceError


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5"])
def test_weights_that_may_run_code_are_refused(tmp_path: Path, suffix: str) -> None:
    weights = tmp_path / "part" / f"weights{suffix}"
    weights.parent.mkdir()
    weights.write_bytes(b"")
    with pytest.raises(SpaceError) as caught:
        locate(str(tmp_path), None)
    assert str(caught.value) == (
        f"{weights}: weights in a format that may run code when it is read; convert them to safetensors"
    )
    (tmp_path / "other.safetensors").write_bytes(b"")  # in another folder
    with pytest.raises(SpaceError):
        locate(str(tmp_path), None)
    (weights.parent / "weights.safetensors").write_bytes(b"")  # it is read in place of the other
    assert locate(str(tmp_path), None)[0] == tmp_path


def test_the_revision_of_a_folder_is_a_hash_of_its_files(tmp_path: Path) -> None:
    names = ["a.safetensors", "config.json", "sub/vocab.txt", "spm.model", "chat.jinja"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    combined = hashlib.sha256()
    for name in sorted(names):
        combined.update(f"{name}\0{hashlib.sha256(name.encode()).hexdigest()}\n".encode())
    expected = f"sha256:{combined.hexdigest()[:16]}"
    assert locate(str(tmp_path), None) == (tmp_path, tmp_path.name, expected)
    (tmp_path / "README.md").write_text("not of the model")
    assert locate(str(tmp_path), "ignored")[2] == expected
    (tmp_path / "config.json").write_text("changed")
    assert locate(str(tmp_path), None)[2] != expected
    assert FETCHED == ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


def test_a_name_needs_a_revision() -> None:
    with pytest.raises(ConfigError) as caught:
        locate("some/model", None)
    assert str(caught.value) == (
        "some/model: no such folder; a model of the hub needs a revision, preferably a commit"
    )


def test_a_snapshot_is_fetched_by_name_and_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot(model: str, **options: object) -> str:
        asked.append((model, options))
        return str(tmp_path / "0123abc")

    (tmp_path / "0123abc").mkdir()
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert locate("some/model", "main") == (tmp_path / "0123abc", "some/model", "0123abc")
    assert asked == [("some/model", {"revision": "main", "allow_patterns": list(FETCHED)})]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "the hub answers 401: there is no such model, or it needs a token: correct `model`, or set HF_TOKEN"),
        (404, "the hub answers 404: there is no such model or revision: correct `model` and `revision`"),
        (503, "the hub answers 503: try again later"),
        (
            None,
            "cannot be fetched from the hub: nothing listens there: start the server, or check the address",
        ),
    ],
)
def test_what_the_hub_answers_is_told_in_plain_words(
    status: int | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def fail(model: str, **options: object) -> str:
        if status is None:
            raise hub.errors.LocalEntryNotFoundError("of its library") from ConnectionRefusedError(111, "refused")
        request = httpx2.Request("GET", "https://hub")
        raise hub.errors.HfHubHTTPError("of its library", response=httpx2.Response(status, request=request))

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(SpaceError) as caught:
        locate("some/model", "main")
    assert str(caught.value).startswith(f"some/model@main: {words}")
    assert "of its library" not in str(caught.value)
