"""Configurations: YAML files, overrides by the environment, and error messages with the likely correction."""

import pytest
import yaml
from toy_data import toy_config

from experiments.config import load_config
from features.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    """Load the toy configuration with changed sections and the given environment."""

    def call(environ=None, **sections):
        return load_config(toy_config(tmp_path, **sections), environ or {})

    return call


def test_a_file_is_read(load):
    config = load()
    assert config.name == "toy"
    assert config.split.test == 0.2
    assert config.towers.dimension == 8
    assert config.reranker is not None
    assert config.data.placements["again"].repeats
    assert config.baselines["item-knn"] == {"decay": 0.9, "shrink": 1, "exponent": 0.5, "k": 10}


def test_missing_settings_have_defaults(load):
    config = load(split={}, training={}, reranker=None)
    assert config.split.kind == "time"
    assert config.training.epochs == 50
    assert config.reranker is None


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"traning": {}}, "unknown key 'traning'; did you mean 'training'?"),
        ({"training": {"epoch": 3}}, "unknown key 'training.epoch'; did you mean 'epochs'?"),
        ({"reranker": {"tree": 3}}, "unknown key 'reranker.tree'; did you mean 'trees'?"),  # an optional section
        ({"split": {"valdation": 0.1}}, "unknown key 'split.valdation'; did you mean 'validation'?"),
        (
            {"towers": {"xyz": 1}},
            "unknown key 'towers.xyz'; did you mean '",
        ),  # unlike every key: the most similar one is named anyway
    ],
)
def test_the_error_of_an_unknown_key_names_the_most_similar_key(load, sections, message):
    with pytest.raises(ConfigError) as caught:
        load(**sections)
    assert message in str(caught.value)
    assert "toy.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"placements": {"home": {"repeat": True}}}, "'data.placements.home.repeat'; did you mean 'repeats'?"),
        ({"events": {"positve": {}}}, "'data.events.positve'; did you mean 'positive'?"),
        ({"pth": "x"}, "'data.pth'; did you mean 'path'?"),
    ],
)
def test_the_error_of_a_nested_unknown_key_names_the_most_similar_key(load, change, message):
    data = {"source": "folder", "path": ".", "events": {"positive": {"take": None}}} | change
    with pytest.raises(ConfigError) as caught:
        load(data=data)
    assert message in str(caught.value)


def test_one_error_names_every_problem(load):
    with pytest.raises(ConfigError) as caught:
        load(training={"epochs": 0}, split={"tset": 0.1})
    assert "training.epochs: " in str(caught.value)
    assert "did you mean 'test'?" in str(caught.value)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"seed": "many"}, r"seed: .*integer.*\(got 'many'\)"),
        ({"seed": -1}, r"seed: .*greater than or equal to 0 \(got -1\)"),
        ({"seed": 2**31}, r"seed: .*less than 2147483648"),
        ({"split": {"test": 1.5}}, r"split\.test: .*less than 1 \(got 1\.5\)"),
        ({"split": {"kind": "random"}}, r"split\.kind: .*'time' or 'leave-last-out' \(got 'random'\)"),
        ({"encoder": "bert"}, r"encoder: .*\(got 'bert'\)"),
        ({"towers": {"dimension": 10}}, r"towers\.dimension: .*multiple of 4 \(got 10\)"),
        ({"towers": {"nested": [16, 64]}}, r"towers: .*nested \[16, 64\]: dimensions below 64 are needed"),
        ({"baselines": {}}, r"baselines: "),
        ({"baselines": {"nonsense 3": {}}}, r"baselines: .*no baseline 'nonsense'; there are popular, "),
        ({"baselines": {"popular": {"dais": 7}}}, r"'popular': got an unexpected keyword argument 'dais'; it takes"),
        ({"baselines": {"popular": {"texts": 7}}}, r"unexpected keyword argument 'texts'"),
        ({"training": 3}, r"training: .*\(got 3\)"),
    ],
)
def test_the_error_of_a_wrong_value_names_its_place(load, sections, message):
    with pytest.raises(ConfigError, match=message):
        load(**sections)


def test_a_variable_that_an_override_replaces_need_not_be_set(load):
    data = {
        "source": "sequences",
        "path": ".",
        "origin": "${RECSYS_DATA}/x.txt",
        "events": {"positive": {"take": None}},
    }
    assert load({"RECSYS__DATA__ORIGIN": "/y/$z.txt"}, data=data).data.origin == "/y/$z.txt"
    with pytest.raises(ConfigError, match=r"needs the environment variable RECSYS_DATA, which is not set: set it"):
        load({"RECSYS__DATA__PATH": "elsewhere"}, data=data)


def test_a_missing_section_is_named(tmp_path):
    (tmp_path / "c.yaml").write_text("name: x")
    with pytest.raises(ConfigError, match=r"c\.yaml: data: Field required"):
        load_config(tmp_path / "c.yaml", {})


def test_the_environment_overrides_the_file(load):
    environ = {
        "RECSYS__SEED": "7",
        "RECSYS__SPLIT__TEST": "0.3",
        "RECSYS__DATA__MIN_TRAIN_EVENTS": "5",
        "RECSYS__DATA__PLACEMENTS__HOME__REPEATS": "true",
        "RECSYS__BUNDLES": "elsewhere",
        "RECSYS__RERANKER": "null",
        "RECSYS__BASELINES": "{popular: {days: 7}}",
        "OTHER__SEED": "8",
    }
    config = load(environ)
    assert config.seed == 7
    assert config.split.test == 0.3
    assert config.split.validation == 0.2  # the rest of the section stays
    assert config.data.min_train_events == 5
    assert config.data.placements["home"].repeats
    assert config.bundles == "elsewhere"
    assert config.reranker is None
    assert config.baselines == {"popular": {"days": 7}}


def test_the_environment_overrides_keys_with_special_characters(load):
    baselines = {"item-knn plain": {"k": 3}, "popular": {}}
    overridden = load({"RECSYS__BASELINES__ITEM_KNN_PLAIN__K": "5"}, baselines=baselines).baselines
    assert overridden == {"item-knn plain": {"k": 5}, "popular": {}}


def test_the_environment_can_add_a_section(tmp_path):
    data = {"source": "folder", "path": ".", "events": {"positive": {"take": None}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"name": "x", "data": data}))
    assert load_config(tmp_path / "c.yaml", {"RECSYS__TRAINING__EPOCHS": "4"}).training.epochs == 4


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RECSYS__TRAINING__EPOCH", "3", "unknown key 'training.epoch'; did you mean 'epochs'?"),
        ("RECSYS__TRAINNG__EPOCHS", "3", "unknown key 'trainng'; did you mean 'training'?"),
        ("RECSYS__SEED", "many", "(got 'many')"),
        ("RECSYS__SEED__DEEP", "3", "environment variable RECSYS__SEED__DEEP: 'seed' holds a value, not a section"),
        ("RECSYS__NAME", "[never closed", "environment variable RECSYS__NAME: '[never closed' is not YAML"),
    ],
)
def test_the_error_of_a_wrong_override_names_the_variable_or_key(load, name, value, message):
    with pytest.raises(ConfigError) as caught:
        load({name: value}, seed=0)
    assert message in str(caught.value)


def test_variables_are_expanded_in_every_string(load):
    data = {
        "source": "folder",
        "path": "$RECSYS_DATA/movies",
        "origin": "${RECSYS_DATA}er",
        "events": {"positive": {"take": None}},
        "extra_columns": ["$COLUMN"],
    }
    config = load({"RECSYS_DATA": "/d", "COLUMN": "year"}, data=data)
    assert config.data.path == "/d/movies"
    assert config.data.origin == "/der"


def test_the_error_of_an_unset_variable_names_it(load):
    with pytest.raises(ConfigError, match=r"'\$RECSYS_DATA/b' needs the environment variable RECSYS_DATA"):
        load(bundles="$RECSYS_DATA/b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a mapping of sections is expected, not NoneType"),
        (b"- a\n- b", "a mapping of sections is expected, not list"),
        (b"name: [", "not YAML"),
        (b"name: \xff", "not YAML"),
        (b"name: !!python/object/apply:os.getcwd []", "not YAML"),  # no code is executed
        (b"1: 2", "1"),
    ],
)
def test_an_invalid_file_is_refused(tmp_path, content, message):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml", {})
    assert message in str(caught.value)
    assert "c.yaml" in str(caught.value)


def test_the_error_of_a_missing_file_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "none.yaml", {})


def test_a_configuration_is_immutable(load):
    with pytest.raises(ValueError, match="frozen"):
        load().seed = 3
