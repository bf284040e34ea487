"""Cursors: text by which a client asks for the next page of a list. The service keeps nothing of them.

A cursor says which products were shown, when the list began, and which request it belongs to. Every process of the
service can read it, whatever bundle it serves. It is base64url (without =) of

    version (1 byte), time of the first page (8, µs), items shown (2), keys (2), bits of a step (1),
    a digest of each parameter (4 each), the steps from each key to the next in as many bits, CRC-32 of all that (4)

Where experiments are in force for the list, the version is 2, and the names of their variants stand after the
digests: their length (2), then as answers have them.

A list of 20 items has a cursor of some 180 characters, one of 1,000 items some 5,600.
"""

import base64
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from features.arrays import Ints, Keys
from features.instants import MINUTE
from features.schema import MAX_POSITION
from recsys.assignment import variant_text, variants_of
from recsys.ranking.slate import Slate
from serving.errors import ApiError
from serving.http import MAX_URL_BYTES
from serving.products import KEY_BITS, Products

PLAIN, WITH_VARIANTS = 1, 2
"""Versions: of a list without experiments, and of one with them."""

LIFETIME_MINUTES = 30
"""A list can be paged so long after its first page."""

MAX_SHOWN = MAX_POSITION
"""Items of all pages together: events name positions up to this one."""

SPARE_BYTES = 100
"""Room in a URL for the parameter itself, and for an option that a later page adds."""

_HEAD = struct.Struct(">BqHHB")
_DIGEST, _CRC, _LENGTH = 4, 4, 2
_AGAIN = "or begin again without a cursor"


@dataclass(frozen=True)
class Page:
    """A page of a list that is asked for.

    begun: time (µs) of the first page; shown: number of items on the pages before; keys (m,) uint64, ascending: those
    of these items (`Products.keys_of`); digests: of each parameter that the list depends on; room: characters that a
    cursor may have; variants: experiment -> variant, of those in force for the list, None where the first page is to
    choose them.
    """

    begun: int
    shown: int = 0
    keys: Keys = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    digests: bytes = b""
    room: int = MAX_URL_BYTES
    variants: Mapping[str, str] | None = None

    @classmethod
    def of(
        cls,
        cursor: str | None,
        parameters: Mapping[str, str | bytes | None],
        now: int,
        room: int = MAX_URL_BYTES,
    ) -> "Page":
        """The page that a cursor asks for; the first page where there is none.

        parameters: name -> value of all that the list depends on, the kind of list first; now: µs.
        Raises ApiError 422 for what is no cursor, or one of another version or list, and 410 when it has expired.
        """
        digests = [_digest(value) for value in parameters.values()]
        if cursor is None:
            return cls(now, digests=b"".join(digests), room=room)
        data = _checked(cursor)
        begun, shown, n_keys, width = _HEAD.unpack_from(data)[1:]
        own = data[_HEAD.size : _HEAD.size + _DIGEST * len(digests)]
        others = [name for at, name in enumerate(parameters) if own[_DIGEST * at : _DIGEST * (at + 1)] != digests[at]]
        if others:
            what = ", ".join(others[:1] if others[0] == next(iter(parameters)) else others)
            raise _refused(f"it belongs to a list with another {what}: send what the first page was asked with")
        if abs(now - begun) > LIFETIME_MINUTES * MINUTE:
            age = f"its first page is {(now - begun) // MINUTE} minutes old; it lives {LIFETIME_MINUTES} minutes"
            raise ApiError("cursor_expired", f"cursor: {age}: begin again without a cursor", "cursor")
        rest = data[_HEAD.size + len(own) : -_CRC]
        length = 0
        if data[0] == WITH_VARIANTS:
            length, rest = int.from_bytes(rest[:_LENGTH], "big"), rest[_LENGTH:]
        keys = _unpacked(rest[length:], n_keys, width)
        if keys is None or not 0 < shown < MAX_SHOWN:
            raise _no_cursor(cursor)
        return cls(begun, shown, keys, own, room, variants_of(rest[:length].decode(errors="replace")))

    def rows(self, products: Products) -> Ints:
        """Rows of the products that were shown on the pages before."""
        return products.rows_of(self.keys) if self.shown else np.zeros(0, dtype=np.int64)

    def next(self, slate: Slate, products: Products) -> str | None:
        """The cursor of the page after this one, whose items are those of a slate. None where it exceeds a bound."""
        shown = self.shown + len(slate)
        keys = np.union1d(self.keys, products.keys_of(slate.rows))
        width, steps = _packed(keys)
        names = variant_text(self.variants).encode() if self.variants else b""
        version, named = (WITH_VARIANTS, len(names).to_bytes(_LENGTH, "big") + names) if names else (PLAIN, b"")
        data = _HEAD.pack(version, self.begun, shown, len(keys), width) + self.digests + named + steps
        text = _encoded(data + crc32(data).to_bytes(_CRC, "big"))
        return text if shown < MAX_SHOWN and len(text) <= self.room else None


def room_in_url(path: bytes, query: bytes) -> int:
    """Characters that a cursor may have, so that a URL can hold it beside what the request has. query: of the URL."""
    others = [part for part in query.split(b"&") if not part.startswith(b"cursor=")]
    return MAX_URL_BYTES - SPARE_BYTES - len(path) - len(b"&".join(others))


def _checked(cursor: str) -> bytes:
    """The bytes of a cursor of this version. Raises ApiError 422."""
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise _no_cursor(cursor) from None
    is_whole = len(data) > _CRC and crc32(data[:-_CRC]).to_bytes(_CRC, "big") == data[-_CRC:]
    if not is_whole or _encoded(data) != cursor:  # the last character holds bits that decoding ignores
        raise _no_cursor(cursor)
    if data[0] not in (PLAIN, WITH_VARIANTS):
        reads = f"versions {PLAIN} and {WITH_VARIANTS}"
        raise _refused(f"it has version {data[0]}, and this service reads {reads}: update the service")
    if len(data) < _HEAD.size + _CRC:
        raise _no_cursor(cursor)
    return data


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _refused(why: str) -> ApiError:
    return ApiError("bad_cursor", f"cursor: {why}, {_AGAIN}", "cursor")


def _no_cursor(cursor: str) -> ApiError:
    what = f"its {len(cursor)} characters are no whole cursor" if cursor else "it is empty"
    return _refused(f"{what}: send the text as it came")


def _digest(value: str | bytes | None) -> bytes:
    """Of the value of a parameter. None differs from every value."""
    text = value.encode(errors="surrogatepass") if isinstance(value, str) else value
    return hashlib.blake2b(b"" if text is None else b"=" + text, digest_size=_DIGEST).digest()


def _packed(keys: Keys) -> tuple[int, bytes]:
    """Bits of a step, and the steps between ascending keys (m,), the first from 0."""
    steps = np.diff(keys, prepend=np.uint64(0))
    width = int(steps.max(initial=0)).bit_length()
    bits = (steps[:, None] >> np.arange(width, dtype=np.uint64)) & np.uint64(1)  # (m, width)
    return width, np.packbits(bits.astype(np.uint8)).tobytes()


def _unpacked(data: bytes, n: int, width: int) -> Keys | None:
    """The n keys that were packed into `data`; None where these are no keys."""
    if width > KEY_BITS or len(data) != -(-n * width // 8):
        return None
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=n * width).reshape(n, width)
    keys = np.cumsum(bits @ (np.uint64(1) << np.arange(width, dtype=np.uint64)), dtype=np.uint64)
    return keys if keys.max(initial=0) < np.uint64(1) << np.uint64(KEY_BITS) else None
