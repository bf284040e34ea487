"""Configurations: YAML files, overrides by the environment, and error messages with the likely correction."""

import json
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from toy_data import toy_config

from experiments.config import RunConfig, load_config
from features.errors import ConfigError
from recsys.config import TowerConfig
from serving.settings import ServeSettings


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
        ({"seed": "many"}, r"seed: must be a whole number \(got 'many'\)"),
        ({"seed": -1}, r"seed: must be 0 or more \(got -1\)"),
        ({"seed": 2**31}, r"seed: must be less than 2,147,483,648"),
        ({"split": {"test": 1.5}}, r"split\.test: must be less than 1 \(got 1\.5\)"),
        ({"split": {"kind": "random"}}, r"split\.kind: must be 'time' or 'leave-last-out' \(got 'random'\)"),
        ({"encoder": "bert"}, r"encoder: .*\(got 'bert'\)"),
        ({"towers": {"dimension": 10}}, r"towers\.dimension: must be a multiple of 4 \(got 10\)"),
        ({"towers": {"nested": [16, 64]}}, r"towers: .*nested \[16, 64\]: dimensions below 64 are needed"),
        ({"baselines": {}}, r"baselines: "),
        ({"baselines": {"nonsense 3": {}}}, r"baselines: .*no baseline 'nonsense'; there are popular, "),
        (
            {"baselines": {"popular": {"dais": 7}}},
            r"'popular' has no setting 'dais'; it has days",
        ),
        ({"baselines": {"popular": {"texts": 7}}}, r"'popular' has no setting 'texts'"),
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
    with pytest.raises(ConfigError, match=r"c\.yaml: data: missing; add it"):
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
        (
            "RECSYS__NAME",
            "[never closed",
            "environment variable RECSYS__NAME line 1, column 14: not YAML: put a text in quotes",
        ),
    ],
)
def test_the_error_of_a_wrong_override_names_the_variable_or_key(load, name, value, message):
    with pytest.raises(ConfigError) as caught:
        load({name: value}, seed=0)
    assert message in str(caught.value)


SERVER = {"kind": "openai-compatible", "model": "m", "base_url": "$SERVER"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"encoder": {k: v for k, v in SERVER.items() if k != "model"}}, "encoder.model: missing; add it"),
        (
            {"encoder": {k: v for k, v in SERVER.items() if k != "kind"}},
            "encoder: must be named values with the key",
        ),
        ({"encoder": SERVER | {"kind": "open"}}, "encoder.kind: must be one of 'builtin', "),
        ({"encoder": SERVER | {"kind": "$SERVER"}}, "(got '$SERVER')"),
        ({"encoder": [SERVER]}, "encoder: must be named values"),
        ({"encoder": "$SERVER"}, "(got '$SERVER')"),
        ({"seed": "$SERVER"}, "(got '$SERVER')"),
        ({"seed": "http://u:s3cret@host/v1?key=s3cret"}, "(got 'http://host/v1')"),
        ({"split": {"kind": "$SERVER"}}, "(got '$SERVER')"),
        ({"bundles": "http://u:s3cret@host/$NO_SUCH"}, "'http://host/$NO_SUCH' needs the environment variable"),
        ({"bundles": "http://u:s3cret@host/\0"}, "null character"),
        ({"baselines": {"$SERVER": {}, "popular": {"days": "$SERVER"}}}, "(got '$SERVER')"),
    ],
)
def test_no_error_shows_a_secret(load, sections, message):
    with pytest.raises(ConfigError) as caught:
        load({"SERVER": "http://u:s3cret@host/v1"}, **sections)
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "[s3cret",
        "*s3cret",
        "!s3cret x",
        "{s3cret: 1, s3cret: 2}",
        "{1: s3cret",
        "2024-13-01 # s3cret",
        "[" * 5000 + "s3cret",
        "{kind: openai-compatible, base_url: 'http://u:s3cret@host/v1'}",
        "http://u:s3cret@host/v1",
    ],
)
def test_no_error_of_an_override_shows_a_secret(load, value):
    with pytest.raises(ConfigError, match=r"environment variable RECSYS__ENCODER|encoder") as caught:
        load({"RECSYS__ENCODER": value})
    assert "s3cret" not in str(caught.value)


def test_what_is_recorded_of_a_run_has_no_secrets(load):
    encoder = SERVER | {"base_url": "http://u:s3cret@host:80/v1?key=s3cret"}
    data = {"source": "folder", "path": ".", "origin": "s3://u:s3cret@bucket/x", "events": {"positive": {"a": None}}}
    config = load(encoder=encoder, data=data)
    recorded = config.recorded()
    assert recorded["encoder"]["base_url"] == "http://host:80/v1"
    assert recorded["data"]["origin"] == "s3://bucket/x"
    recorded["encoder"], recorded["data"] = config.encoder.model_dump(), config.data.model_dump()
    assert recorded == config.model_dump()


def test_an_expanded_string_is_plain_text(load):
    assert type(load({"WHERE": "there"}, bundles="$WHERE").bundles) is str


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
    assert config.data.extra_columns == ("year",)


def test_the_error_of_an_unset_variable_names_it(load):
    with pytest.raises(ConfigError, match=r"'\$RECSYS_DATA/b' needs the environment variable RECSYS_DATA"):
        load(bundles="$RECSYS_DATA/b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "sections of named values are needed (got an empty file)"),
        (b"- a\n- b", "sections of named values are needed (got a list)"),
        (b"name: [", "line 1, column 8: not YAML"),
        (b"name: \xff", "not UTF-8 at byte 6: save it as UTF-8 text"),
        ("name: x".encode("utf-16"), "not UTF-8 at byte 0"),
        (bytes(range(8)) * 50, "line 1: not YAML: it has the character U+0000"),
        (b"PK\x03\x04\xff", "not UTF-8"),
        (b"name: x\n\tseed: 1", "c.yaml line 2, column 1: not YAML: a tab: indent with spaces"),
        (b"name: x\nseed: 1\nname: y", "line 3, column 1: not YAML: the key 'name' stands twice"),
        (b"data:\n  events:\n    positive: {yes: null}", "line 3, column 16: not YAML: the key yes is read as True"),
        (b"data: {2024-01-01: 1}", "the key 2024-01-01 is read as datetime.date(2024, 1, 1), not as text: put it in"),
        (b"? [a, b]\n: 1", "the key a list or mapping is read as"),
        (b"name: 2024-13-01", "line 1, column 7: not YAML: a date, a number or another value that does not exist"),
        (b"name: 2024-01-01\ndata: 1", "name: must be a text (got 2024-01-01; put it"),
        (b"name: yes\ndata: 1", "name: must be a text (got true; put it in quotes)"),
        (b"name: &a {b: *a}", "an alias contains itself"),
        (b"[" * 5000, "too many levels of nesting"),
        (b"a: b: c", "line 1, column 5: not YAML: a colon where no key can stand: put a text with a colon in quotes"),
        (b"a: 'x", "line 1, column 6: not YAML: a quotation mark is opened and not closed"),
        (b"a: @x", "line 1, column 4: not YAML: no text can begin with this character: put the text in quotes"),
        (b"a: [1, 2", "not YAML: a bracket is not closed, or a comma is missing"),
        (b"a:\n  - 1\n b: 2", "line 3, column 2: not YAML: the indentation does not fit the lines before: align it"),
        (b"a: 1\n---\nb: 2", "line 2, column 1: not YAML: a second document begins: keep one"),
        (b"a: *x", "not YAML: an alias (*name) without its anchor"),
        (b"a: &x 1\nb: &x 2", "line 2, column 4: not YAML: an anchor (&name) stands twice"),
        (b"a: &", "not YAML: a * or & without a name"),
        (b"a: !foo 1", "not YAML: a tag (!name) that is not known"),
        (b'a: "\\q"', "not YAML: a backslash in a text with double quotes"),
        (b'a: "\\xzz"', "not YAML: a backslash in a text with double quotes"),
        (b"a: ]", "not YAML: a value is missing, or a bracket is not closed"),
        (b"%YAML 3.0\n---\na: 1", "not YAML: it is of a later version of YAML: remove the line %YAML"),
        (b"a: !!timestamp x", "line 1, column 4: not YAML: a date, a number or another value that does not exist"),
        (b"a: !!bool x", "line 1, column 4: not YAML: a date, a number or another value that does not exist"),
        (b"a: !!set x", "line 1, column 4: not YAML: named values are needed there: remove the tag"),
        (b'name: "b\\ud83c"', "line 1, column 7: not YAML: a date, a number or another value that does not exist"),
        (b"a: !!seq 1", "not YAML: it cannot be read there: correct it, or put the text in quotes (ValueError: "),
        (b"# only a comment", "sections of named values are needed (got an empty file)"),
        (b"name: !!python/object/apply:os.getcwd []", "not YAML"),  # no code is executed
        (b"1: 2", "the key 1 is read as 1, not as text: put it in quotes"),
    ],
)
def test_an_invalid_file_is_refused(tmp_path, content, message):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml", {})
    assert message in str(caught.value)
    assert "c.yaml" in str(caught.value)


def test_characters_that_json_writes_as_two_escapes_are_one(tmp_path):
    raw = json.loads(json.dumps(yaml.safe_load(toy_config(tmp_path).read_text())))
    raw["bundles"] = "b\N{CLAPPER BOARD}"
    (tmp_path / "c.yaml").write_text(json.dumps(raw))
    assert r"\ud83c\udfac" in (tmp_path / "c.yaml").read_text()
    assert load_config(tmp_path / "c.yaml", {}).bundles == "b\N{CLAPPER BOARD}"


def unbounded(node, place=()):
    """Places in a JSON schema of numbers without an upper bound."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if isinstance(node, dict):
        if node.get("type") in ("integer", "number") and not node.keys() & {"maximum", "exclusiveMaximum"}:
            yield place
        for key, value in node.items():
            yield from unbounded(value, (*place, str(key)))


def test_every_number_has_an_upper_bound():
    """A number without one ends in a library, after hours: as too many trees, or an array that is too large."""
    places = unbounded(RunConfig.model_json_schema())
    free = {".".join(part for part in place if not part.isdigit()) for place in places}
    assert free == {
        "$defs.EventRules.properties.positive.additionalProperties.anyOf",  # compared with values of events only
        "properties.baselines.additionalProperties.additionalProperties.anyOf",  # checked by each baseline
    }
    settings = {place[1] for place in unbounded(ServeSettings.model_json_schema())}
    assert settings == {"events_days", "exposures_days"}  # inf keeps for ever


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reranker": {"candidates": 10**30}}, "reranker.candidates: must be 1,000,000 or less (got 1" + "0" * 30),
        ({"reranker": {"learning_rate": 1e300}}, "reranker.learning_rate: must be 100 or less (got 1e+300)"),
        ({"split": {"kind": "time", "windows": 10**12}}, "split.windows: must be 1,000 or less (got 1000000000000)"),
        ({"alignment": {"nested": [8, 10**9]}}, "alignment.nested.1: must be 16,384 or less (got 1000000000)"),
    ],
)
def test_a_number_beyond_its_bound_is_refused(load, change, said):
    with pytest.raises(ConfigError) as caught:
        load(**change)
    assert said in str(caught.value)


def test_the_name_of_a_placement_is_refused_with_the_place_of_its_mapping(load):
    with pytest.raises(ConfigError) as caught:
        load(data={"source": "movielens", "path": "x", "placements": {"": {"repeats": True}}})
    assert "data.placements: the name of a placement has 1 to 100 characters" in str(caught.value)


def float_fields(model, place=()):
    """Place of every field of a configuration class that may hold a float, in all its sections."""
    for name, field in model.model_fields.items():
        todo, has_float = [field.annotation], False
        while todo:
            kind = todo.pop()
            todo += get_args(kind)
            has_float |= kind is float
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from float_fields(kind, (*place, name))
        if has_float:
            yield (*place, name), field.annotation


FLOATS = sorted({place for place, _ in float_fields(RunConfig)})


def test_there_are_many_numbers_to_check():
    assert len(FLOATS) >= 20
    assert {("data", "events", "positive"), ("baselines",), ("training", "learning_rate")} <= set(FLOATS)


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "'nan'", "1e999", "'inf'"])
@pytest.mark.parametrize("place", FLOATS, ids=".".join)
def test_no_number_may_be_infinite_or_not_a_number(load, place, number):
    value = yaml.safe_load(number)
    shapes = {
        ("data", "events", "positive"): {"take": value},
        ("data", "events", "weights"): {"take": value},
        ("baselines",): {"item-knn": {"decay": value}},
        ("alignment", "shrinkage"): [value],
        ("alignment", "power"): [value],
        ("alignment", "within"): [value],
        ("reranker", "objectives"): {"home": {"take": value}},
    }
    variable, setting = "__".join(place), shapes.get(place, value)
    if place[0] == "encoder":  # its class is chosen by `kind`
        variable, setting = "encoder", {"kind": "gemini", place[1]: value}
    text = json.dumps(setting).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")
    with pytest.raises(ConfigError, match=rf"{place[0]}\..*{place[-1]}.*finite" if place[1:] else "finite"):
        load({f"RECSYS__{variable.upper()}": text})


@pytest.mark.parametrize("seed", [-1, 2**31, 10**40])
def test_a_seed_that_a_library_refuses_is_refused_before_the_run(load, seed):
    with pytest.raises(ConfigError, match="seed: must be "):
        load(seed=seed)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = toy_config(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_config(path, {}).name == "toy"


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="a folder; give a file"):
        load_config(tmp_path, {})


def test_the_error_of_a_missing_file_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file; check"):
        load_config(tmp_path / "none.yaml", {})


def test_a_configuration_is_immutable(load):
    with pytest.raises(ValueError, match="frozen"):
        load().seed = 3


def test_the_earlier_name_of_a_setting_is_read_by_the_same_rules():
    assert TowerConfig.model_validate({"newcomers": 0.4}).cold_share == 0.4
    assert TowerConfig.model_validate({"cold_share": 0.4}).model_dump()["cold_share"] == 0.4
    for wrong in (True, 2, "x"):
        with pytest.raises(ValidationError, match="newcomers"):
            TowerConfig.model_validate({"newcomers": wrong})
