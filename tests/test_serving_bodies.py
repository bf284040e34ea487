"""Bodies of searches and items, parsed without a service: the largest that are accepted; what each field becomes."""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from service_harness import GREEN_PNG, b64
from toy_service import NOW, ToyBundle, toy_bundle, with_contents

from features.content.parts import Audio, Image, Text, Video
from features.log.item_changes import MEDIA_FOLDER
from serving.errors import ApiError
from serving.routes.items.fields import new_state, parse_fields
from serving.routes.search_query import parse_query
from serving.schemas.body import parse_json

JSON = "application/json"
FORM = "multipart/form-data; boundary=edge"


def form(*fields: tuple[str, str | None, bytes]) -> bytes:
    """A form body of (name, file name or None, content)."""
    parts = []
    for name, filename, content in fields:
        shown = f'; filename="{filename}"' if filename is not None else ""
        head = f'--edge\r\nContent-Type: a/b\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join(parts) + b"--edge--\r\n"


def refused(call: Any, status: int, code: str, place: str) -> None:
    with pytest.raises(ApiError) as error:
        call()
    assert (error.value.status, error.value.code, error.value.place) == (status, code, place)


# --- JSON


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is empty: send JSON"),
        (b" \r\n", "the body is empty: send JSON"),
        ("{}".encode("utf-16"), "the body is in UTF-16: send it in UTF-8"),
        ('{"a": 1}'.encode("utf-16-be"), "the body is in UTF-16: send it in UTF-8"),
        ("{}".encode("utf-32"), "the body is in UTF-32: send it in UTF-8"),
        (b"\xef\xbb\xbf{}", "the body begins with a byte order mark: send UTF-8 without it"),
        (gzip.compress(b"{}", mtime=0), "the body is compressed (gzip): send it uncompressed"),
        (b'{"a": "\xe9"}', "the body is not UTF-8 at byte 7: send it in UTF-8"),
        (b'{"a":\n NaN}', "the body is not JSON at line 2, column 2: correct it there"),
        (b"[1,]", "the body is not JSON at line 1, column 3: correct it there"),
        (
            b'{"a": 1',
            "the body is not JSON at line 1, column 8: the body ends before its JSON does; send all of it",
        ),
        (
            b"[1e999]",
            "the body is not JSON at line 1, column 2: the number is too large for a double; send a smaller one",
        ),
        (
            b'"\\ud800"',
            "the body is not JSON at line 1, column 2: half of a surrogate pair is no character; "
            "send both halves, or neither",
        ),
        (
            b'"\\udc00"',
            "the body is not JSON at line 1, column 2: half of a surrogate pair is no character; "
            "send both halves, or neither",
        ),
        (
            b"[" * 2000,
            "the body is not JSON at line 1, column 1026: it has too many levels of nesting; send fewer",
        ),
    ],
)
def test_why_a_body_is_not_json(body: bytes, message: str) -> None:
    with pytest.raises(ApiError) as error:
        parse_json(body)
    assert (error.value.status, error.value.code, error.value.place) == (400, "bad_json", "body")
    assert error.value.detail == message


# --- searches


def test_each_field_of_a_search() -> None:
    sent = {"text": " red ", "image": b64(b"i"), "audio": b64(b"a"), "video": "https://h/x.mp4"}
    more = {"limit": 100, "user_id": "ann", "weight": 1, "filter": {"items": ["i1"]}}
    parsed = parse_query(orjson.dumps(sent | more), JSON)
    assert parsed.content.parts == (Text(" red "), Image(b"i"), Audio(b"a"), Video("https://h/x.mp4"))
    assert (parsed.options.limit, parsed.options.user_id, parsed.options.weight) == (100, "ann", 1)
    assert parsed.options.filter is not None
    assert parsed.options.filter.items == ("i1",)


def test_the_defaults_of_a_search() -> None:
    options = parse_query(b'{"text": "red"}', JSON).options
    assert (options.limit, options.weight, options.user_id, options.filter) == (20, 0.3, None, None)


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("limit", 1, True),
        ("limit", 0, False),
        ("limit", 101, False),
        ("weight", 0, True),
        ("weight", -0.01, False),
        ("weight", 1.01, False),
        ("user_id", "x" * 512, True),
        ("user_id", "x" * 513, False),
        ("text", 7, False),
    ],
)
def test_bounds_of_a_search(field: str, value: Any, valid: bool) -> None:
    body = orjson.dumps({"text": "red", field: value})
    if valid:
        assert getattr(parse_query(body, JSON).options, field) == value
    else:
        refused(lambda: parse_query(body, JSON), 422, "bad_query", field)


@pytest.mark.parametrize("body", [b"{}", b'{"text": ""}', b'{"text": " \\n"}', b'{"image": ""}', b'{"limit": 3}'])
def test_a_search_for_nothing(body: bytes) -> None:
    refused(lambda: parse_query(body, JSON), 422, "nothing_asked", "body")


def test_bodies_that_are_no_search() -> None:
    refused(lambda: parse_query(b"{", JSON), 400, "bad_json", "body")
    refused(lambda: parse_query(b"[]", JSON), 422, "bad_query", "body")
    refused(lambda: parse_query(b'{"colour": 1}', JSON), 422, "bad_query", "colour")
    refused(lambda: parse_query(orjson.dumps({"x" * 65: 1}), JSON), 422, "bad_query", "x" * 64)
    refused(lambda: parse_query(b'{"image": "no base64"}', JSON), 422, "bad_media", "image")
    refused(lambda: parse_query(b'{"audio": "http://h/x"}', JSON), 422, "bad_media", "audio")


def test_the_largest_number_of_values_in_a_body() -> None:
    def body(n: int) -> bytes:  # n commas, one bracket
        return b'{"text": "' + b"," * n + b'"}'

    assert parse_query(body(99_999), JSON).options.text == "," * 99_999
    refused(lambda: parse_query(body(100_000), JSON), 422, "bad_query", "body")
    for sign in (b"[", b"{"):
        refused(lambda sign=sign: parse_query(b'{"text": "' + sign * 100_000 + b'"}', JSON), 422, "bad_query", "body")


def test_a_form() -> None:
    body = form(
        ("text", None, b"red"),
        ("image", "x.png", GREEN_PNG),
        ("limit", None, b"7"),
        ("weight", None, b"0.5"),
        ("filter", None, b'{"items": ["i1"]}'),
        ("audio", "", b""),  # a file field that was left empty
    )
    for content_type in (FORM, FORM.replace("multipart", "Multipart"), FORM.replace(";", " ;")):
        parsed = parse_query(body, content_type)
        assert parsed.content.parts == (Text("red"), Image(GREEN_PNG))
        assert (parsed.options.limit, parsed.options.weight) == (7, 0.5)
        assert parsed.options.filter is not None
        assert parsed.options.filter.items == ("i1",)


def test_a_text_of_a_form_may_be_base64_or_a_url() -> None:
    body = form(("image", None, b64(b"i").encode()), ("video", None, b"https://h/x.mp4"))
    assert parse_query(body, FORM).content.parts == (Image(b"i"), Video("https://h/x.mp4"))


def test_a_nameless_file_with_content_is_read() -> None:
    assert parse_query(form(("image", "", b"i")), FORM).content.parts == (Image(b"i"),)


def test_invalid_forms() -> None:
    twice = form(("text", None, b"a"), ("text", None, b"b"))
    refused(lambda: parse_query(twice, FORM), 422, "bad_query", "text")
    refused(lambda: parse_query(form(("text", None, b"\xff")), FORM), 422, "bad_query", "text")
    refused(lambda: parse_query(form(("text", None, b"a"), ("limit", None, b"x")), FORM), 422, "bad_query", "limit")
    refused(
        lambda: parse_query(form(("text", None, b"a"), ("limit", None, b"1" * 10)), FORM), 422, "bad_query", "limit"
    )
    refused(lambda: parse_query(form(("text", None, b"a"), ("filter", None, b"{")), FORM), 422, "bad_query", "filter")
    refused(lambda: parse_query(form(("colour", None, b"a")), FORM), 422, "bad_query", "colour")
    refused(lambda: parse_query(form(("text", None, b"a")), "multipart/form-data"), 400, "bad_form", "body")
    refused(lambda: parse_query(form(("text", None, b"a"))[:-8], FORM), 400, "bad_form", "body")
    refused(lambda: parse_query(b"no form", FORM), 400, "bad_form", "body")
    many = form(*((f"f{n}", None, b"") for n in range(10)))
    refused(lambda: parse_query(many, FORM), 422, "bad_query", "body")
    all_nine = form(("limit", None, b"7"), *((f"f{n}", None, b"") for n in range(8)))
    refused(lambda: parse_query(all_nine, FORM), 422, "bad_query", "f0")  # nine fields are read


# --- items


@pytest.fixture
def bundle(tmp_path: Path) -> ToyBundle:
    """With extra columns of three types; [::1]:8443 and two hosts may be named in URLs."""
    hosts = ("media.example.org", "Other.example.org:8443", "[::1]", "[::2]:9")
    plain = with_contents(toy_bundle(tmp_path), hosts=hosts)
    columns = ("colour", "size", "sold", "late", "title")
    data = plain.data.model_copy(update={"extra_columns": columns})
    frame = plain.catalog.frame.with_columns(colour=pl.lit("red"), size=pl.lit(1, pl.Int32), sold=pl.lit(True))
    return replace(plain, data=data, catalog=replace(plain.catalog, frame=frame))


def parsed(bundle: ToyBundle, folder: Path, **fields: Any) -> dict[str, Any]:
    record = new_state("sky", parse_fields(orjson.dumps(fields), bundle, folder), {}, NOW)
    assert (record.item_id, record.timestamp) == ("sky", NOW)
    return dict(record.fields)


def test_the_largest_fields_of_an_item(bundle: ToyBundle, tmp_path: Path) -> None:
    fields = {
        "title": "t" * 1_000,
        "description": "d" * 200_000,
        "categories": ["c" * 1_000] * 100,
        "price": 0.0,
        "group_id": "é" * 256,
        "colour": "r" * 200_000,
        "available": False,
    }
    assert parsed(bundle, tmp_path, **fields) == fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", "t" * 1_001),
        ("description", "d" * 200_001),
        ("categories", ["c"] * 101),
        ("categories", ["c" * 1_001]),
        ("price", -0.01),
        ("group_id", "é" * 256 + "a"),
        ("colour", "r" * 200_001),
        ("size", 2**31),
        ("sold", 1),
        ("unknown", 1),
    ],
)
def test_fields_that_are_too_large(bundle: ToyBundle, tmp_path: Path, field: str, value: Any) -> None:
    place = "categories.0" if value == ["c" * 1_001] else field
    refused(lambda: parsed(bundle, tmp_path, **{field: value}), 422, "bad_item", place)


def test_fields_that_are_null_or_absent_are_not_logged(bundle: ToyBundle, tmp_path: Path) -> None:
    assert parsed(bundle, tmp_path) == {"available": True}
    sent = {"title": None, "price": None, "image": None, "size": None, "colour": None}
    assert parsed(bundle, tmp_path, **sent) == {"available": True}


def test_values_of_extra_columns(bundle: ToyBundle, tmp_path: Path) -> None:
    sent = {"size": 2**31 - 1, "sold": False, "late": "a column that no item has yet"}
    assert parsed(bundle, tmp_path, **sent) == sent | {"available": True}


def test_times_are_logged_in_utc(bundle: ToyBundle, tmp_path: Path) -> None:
    fields = parsed(bundle, tmp_path, published_at="2026-01-31T12:00:00+01:00")
    assert fields["published_at"] == "2026-01-31T11:00:00+00:00"


def test_files_are_stored_beside_the_log(bundle: ToyBundle, tmp_path: Path) -> None:
    fields = parsed(bundle, tmp_path, image=b64(GREEN_PNG), audio=b64(b"sound"), video="https://media.example.org/v")
    assert (tmp_path / fields["image"]).read_bytes() == GREEN_PNG
    assert (tmp_path / fields["audio"]).read_bytes() == b"sound"
    assert fields["video"] == "https://media.example.org/v"
    assert fields["image"].startswith(f"{MEDIA_FOLDER}/")
    assert len(list((tmp_path / MEDIA_FOLDER).iterdir())) == 2


@pytest.mark.parametrize(
    "url",
    [
        "https://media.example.org/x",
        "https://MEDIA.example.org/x",
        "https://media.example.org:443/x",
        "https://other.example.org:8443/x",
        "https://[::1]/x",
        "https://[::1]:443/x",
        "https://[::2]:9/x",
        "https://media.example.org/" + "x" * (4096 - 26),
    ],
)
def test_urls_of_allowed_hosts(bundle: ToyBundle, tmp_path: Path, url: str) -> None:
    assert parsed(bundle, tmp_path, image=url)["image"] == url


@pytest.mark.parametrize(
    "url",
    [
        "https://media.example.org:8443/x",
        "https://other.example.org/x",
        "https://other.example.org:443/x",
        "https://[::2]/x",
        "https://[::1]:9/x",
        "https://user@media.example.org/x",
        "https://@media.example.org/x",
        "https://example.org/x",
        "https:///x",
        "https://[/x",
        "https://media.example.org:port/x",
        "https://media.example.org/\n",
        "https://media.example.org/" + "x" * (4097 - 26),
    ],
)
def test_other_urls(bundle: ToyBundle, tmp_path: Path, url: str) -> None:
    refused(lambda: parsed(bundle, tmp_path, image=url), 422, "bad_media", "image")


def test_without_allowed_hosts_no_url_is_accepted(tmp_path: Path) -> None:
    for plain in (toy_bundle(tmp_path), with_contents(toy_bundle(tmp_path))):
        refused(lambda b=plain: parsed(b, tmp_path, image="https://media.example.org/x"), 422, "bad_media", "image")


def test_a_form_of_another_boundary_is_told_in_our_words() -> None:
    with pytest.raises(ApiError) as caught:
        parse_query(b"no form", FORM)
    assert caught.value.detail == (
        "the body is not a form of the boundary in its Content-Type at byte 0: correct it there"
    )
