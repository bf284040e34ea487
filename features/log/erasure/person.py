"""How the id of a person stands in files: as a value of JSON, and as bytes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

import orjson

PERSON_KEYS = ("user_id", "from_id")
"""Keys of the log's records whose value is a user."""

DISTINCTIVE_BYTES = 8
"""Length of the shortest id that is searched for in files of other kinds: any file may hold "17" or "home"."""


@dataclass(frozen=True)
class Person:
    """A user, by id."""

    user: str

    @cached_property
    def forms(self) -> tuple[bytes, ...]:
        """The bytes that the id can have: as UTF-8, in JSON with and without escapes, and percent-encoded."""
        percent = quote(self.user, safe="")
        lower = quote(self.user, safe="").replace("%", "\0").lower().replace("\0", "%")
        plain = self.user.encode()
        texts = (orjson.dumps(self.user)[1:-1], json.dumps(self.user)[1:-1].encode(), percent.encode())
        lowered = (lower.encode(),) if self.user.lower() == self.user else ()
        return tuple(dict.fromkeys((plain, *texts, *lowered)))

    @cached_property
    def quoted(self) -> tuple[bytes, ...]:
        """The forms as values of JSON."""
        return tuple(b'"%s"' % form for form in self.forms)

    @property
    def is_distinctive(self) -> bool:
        """Whether the id is long enough to be searched for in files of any kind."""
        return len(self.user.encode()) >= DISTINCTIVE_BYTES

    def is_named_by(self, payload: bytes) -> bool:
        """Whether the JSON of a line says that its user is this person."""
        if not any(form in payload for form in self.quoted):
            return False
        try:
            values = orjson.loads(payload)
        except orjson.JSONDecodeError:
            return True
        return isinstance(values, dict) and any(values.get(key) == self.user for key in PERSON_KEYS)

    def stands_in(self, data: bytes) -> bool:
        """Whether the id stands in the bytes, and not as a part of a longer word."""
        for form in self.forms:
            at = data.find(form)
            while at >= 0:
                if not (
                    _is_letter(data[max(0, at - 1) : at]) or _is_letter(data[at + len(form) : at + len(form) + 1])
                ):
                    return True
                at = data.find(form, at + 1)
        return False


def _is_letter(byte: bytes) -> bool:
    return byte.isalnum() or byte >= b"\x80"


def lines_with(data: bytes, forms: Sequence[bytes], start: int = 0) -> Iterator[tuple[int, int]]:
    """(offset, length) of each line, from that of the byte `start` on, that holds one of the forms.

    A line counts with its line feed, which the last one may lack.
    """
    start = data.rfind(b"\n", 0, start) + 1
    places = {form: data.find(form, start) for form in forms}  # next place of each form; -1: there is none
    while found := [place for place in places.values() if place >= 0]:
        begin = data.rfind(b"\n", 0, min(found)) + 1
        stop = data.find(b"\n", min(found))
        end = len(data) if stop < 0 else stop + 1
        yield begin, end - begin
        places = {form: data.find(form, end) if 0 <= place < end else place for form, place in places.items()}
