"""Locates the files of a model and its exact revision: a folder, or a snapshot of the Hugging Face hub.

Only data files are fetched: weights as safetensors, never pickle, and no code.
"""

import hashlib
from pathlib import Path

from features.errors import ConfigError, SpaceError, describe_connection_error, missing_package

FETCHED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""Files of a model that are fetched from the hub; of a folder, these files are hashed."""

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5"}


def locate(model: str, revision: str | None) -> tuple[Path, str, str]:
    """(folder, name, exact revision); the revision is the commit on the hub, or a hash of the files in a folder.

    model: a folder, or a name on the hub, which needs a revision: a commit, tag or branch. HF_HUB_OFFLINE is obeyed.
    Raises ConfigError without a revision, SpaceError when the model cannot be fetched or its weights are pickled, and
    DependencyError.
    """
    folder = Path(model)
    if folder.is_dir():
        files = sorted({path for pattern in FETCHED for path in folder.rglob(pattern) if path.is_file()})
        combined = hashlib.sha256()
        for path in files:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            combined.update(f"{path.relative_to(folder).as_posix()}\0{digest}\n".encode())
        name, exact = folder.absolute().name, f"sha256:{combined.hexdigest()[:16]}"
    else:
        if revision is None:
            raise ConfigError(f"{model}: no such folder; a model of the hub needs a revision, preferably a commit")
        folder = _snapshot(model, revision)
        name, exact = model, folder.name
    for path in folder.rglob("*"):
        if path.suffix in PICKLES and not any(path.parent.glob("*.safetensors")):
            raise SpaceError(
                f"{path}: weights in a format that may run code when it is read; convert them to safetensors"
            )
    return folder, name, exact


ANSWERS = {
    **dict.fromkeys((401, 403), "there is no such model, or it needs a token: correct `model`, or set HF_TOKEN"),
    404: "there is no such model or revision: correct `model` and `revision`",
}
"""Status of the hub -> what mends it."""


def _snapshot(model: str, revision: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise missing_package(model, error.name, "native") from error
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(FETCHED)))
    except HFValidationError as error:
        raise SpaceError(f"{model}@{revision}: is no name of a model of the hub: write OWNER/NAME") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        why = ANSWERS.get(status, "try again later")
        raise SpaceError(f"{model}@{revision}: the hub answers {status}: {why}") from error
    except OSError as error:
        why = describe_connection_error(error)
        raise SpaceError(
            f"{model}@{revision}: cannot be fetched from the hub: {why}; or fetch it elsewhere, and name its folder"
        ) from error
