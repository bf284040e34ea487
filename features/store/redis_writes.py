"""What the server itself does, atomically: it writes states of one generation, and moves the watermark.

A write of states checks that its generation is served or being filled. States that are all new are set in a
transaction; other writes are scripts in Lua. What users were shown belongs to no generation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from features.instants import DAY
from features.store.base import RECENT_USERS, Watermark
from features.store.connection import Client
from features.store.redis_keys import RedisKeys
from features.store.user_state import DIGEST_BYTES, LATEST_AT, MAX_SHOWN, SHOWN_BYTES, latest_time

_WRITE = f"""
local marks = (redis.call('GET', KEYS[1]) or '') .. (redis.call('GET', KEYS[2]) or '')
if not string.find(marks, ARGV[1], 1, true) then return {{0}} end
local failed, keep, at = {{}}, tonumber(ARGV[3]), 4 + 2 * ARGV[4]
for i = 4, #KEYS do
  local written = false
  if ARGV[2] == 'add' then
    at = at + 1
    written = redis.call('SET', KEYS[i], ARGV[at], 'NX')
  else
    at = at + 2
    if redis.call('GETRANGE', KEYS[i], 0, {DIGEST_BYTES - 1}) == ARGV[at - 1] then
      written = ARGV[at] == '' and redis.call('DEL', KEYS[i]) or redis.call('SET', KEYS[i], ARGV[at])
    end
  end
  if not written then
    failed[#failed + 1] = i - 3
  elseif keep > 0 and #ARGV[at] > {LATEST_AT} then
    local n = struct.unpack('<I4', ARGV[at], {DIGEST_BYTES + 1})
    if n > 0 then
      local latest = struct.unpack('<i8', ARGV[at], {LATEST_AT + 1} + 8 * (n - 1))
      redis.call('PEXPIREAT', KEYS[i], string.format('%.0f', math.floor(latest / 1000) + keep))
    end
  end
end
for i = 5, 3 + 2 * ARGV[4], 2 do
  if ARGV[i] == '' then
    redis.call('ZREM', KEYS[3], ARGV[i + 1])
  else
    redis.call('ZADD', KEYS[3], 'GT', ARGV[i], ARGV[i + 1])
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -{RECENT_USERS} - 1)
return failed
"""
"""Keys: watermark, building, recent, and one of each user. Arguments: the generation, the way of writing, ms after
its latest event that a state is kept (0: for ever), number of pairs of `recent`, the pairs (time, user), then those
of each user. add: set values that are absent, an argument of each user. replace: set values that still begin with the
digest that was read, two arguments: the digest, "" for no value, and the new value, "" to delete it. Returns the
numbers, from 1, of the users that were not written, or {{0}} for a generation that is not written any more."""

_START = """
redis.call('SET', KEYS[2], ARGV[2])
local mark = redis.call('GET', KEYS[1])
if not mark or string.sub(mark, 1, 15) ~= '{"filled": true' then redis.call('SET', KEYS[1], ARGV[1]) end
"""
"""Keys: watermark, building; arguments: the new watermark, its generation."""

_ADVANCE = """
local mark = redis.call('GET', KEYS[1]) or ''
if mark ~= ARGV[1] then return 0 end
local fill = string.match(ARGV[2], '"fill": "(%w*)"')
if string.match(mark, '"fill": "(%w*)"') ~= fill and redis.call('GET', KEYS[3]) ~= fill then return -1 end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then redis.call('SET', KEYS[2], ARGV[3]) end
if ARGV[4] == 'filled' and redis.call('GET', KEYS[3]) == fill then redis.call('DEL', KEYS[3]) end
return 1
"""
"""Keys: watermark, tables, building; arguments: the watermark that was read, "" for none, the new one, what is kept
of the tables, "filled" when it is filled."""


_ADD_SHOWN = f"""
local data = (redis.call('GET', KEYS[1]) or '') .. ARGV[1]
redis.call('SET', KEYS[1], string.sub(data, -{MAX_SHOWN * SHOWN_BYTES}), 'PX', ARGV[2])
"""
"""Key: the showings of a user; arguments: those to add, ms after which they are forgotten."""

_MOVE_SHOWN = f"""
local data, given, kept = redis.call('GET', KEYS[1]) or '', {{}}, {{}}
for at = 1, #data - {SHOWN_BYTES - 1}, {SHOWN_BYTES} do
  local into = struct.unpack('<i8', data, at + 8) <= tonumber(ARGV[1]) and given or kept
  into[#into + 1] = string.sub(data, at, at + {SHOWN_BYTES - 1})
end
if #given == 0 then return end
local ms = math.max(redis.call('PTTL', KEYS[1]), redis.call('PTTL', KEYS[2]), 1)
local all = (redis.call('GET', KEYS[2]) or '') .. table.concat(given)
redis.call('SET', KEYS[2], string.sub(all, -{MAX_SHOWN * SHOWN_BYTES}), 'PX', ms)
if #kept == 0 then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], table.concat(kept), 'KEEPTTL')
end
"""
"""Keys: the showings of the user who gives them, and of the one who gets them; argument: the last time (µs)."""


def add_all(
    client: Client, keys: RedisKeys, fill: str, values: Mapping[str, bytes], recent: Mapping[str, int]
) -> bool | None:
    """Add the states of users that have none. False, and no state is added, when one of them has one.

    recent: see `write`. None, and nothing is written, when the generation `fill` is neither served nor being filled.
    """
    watched = (keys.watermark, keys.building)

    def add(pipe: Any) -> None:
        if fill.encode() not in b"".join(mark or b"" for mark in pipe.mget(watched)):
            return
        pipe.multi()
        pipe.msetnx({keys.user(fill, user): data for user, data in values.items()})
        if recent:
            pipe.zadd(keys.recent(fill), dict(recent), gt=True)
            pipe.zremrangebyrank(keys.recent(fill), 0, -RECENT_USERS - 1)

    done: Any = client.transaction(add, *watched)
    return bool(done[0]) if done else None


def write(
    client: Client,
    keys: RedisKeys,
    fill: str,
    how: str,
    values: Mapping[str, bytes],
    arguments: Sequence[bytes],
    recent: Mapping[str, int] | None,
    days: int | None,
) -> list[int]:
    """Write states, b"" for none, as `how` and `arguments` say: see `_WRITE`, also for what is returned.

    recent: user -> time (µs) of the latest event, of those that may be among the recent users, also where their
    states stay; None: of all that are written; days: `EventRules.history_days`.
    """
    if recent is None:
        recent = {user: latest_time(data) for user, data in values.items() if data}
    active: list[Any] = [part for user, at in recent.items() for part in (at, user)]
    active += [part for user, data in values.items() if not data for part in ("", user)]
    named = [keys.watermark, keys.building, keys.recent(fill), *(keys.user(fill, user) for user in values)]
    given = (fill or "none", how, (days or 0) * DAY // 1000, len(active) // 2, *active, *arguments)
    failed: list[int] = client.eval(_WRITE, len(named), *named, *given)
    return failed


def add_shown(client: Client, key: str, data: bytes, days: float) -> None:
    """Add showings to those of a user; the newest MAX_SHOWN stay, and all are forgotten after `days`."""
    client.eval(_ADD_SHOWN, 1, key, data, max(1, int(days * DAY) // 1000))


def move_shown(client: Client, moves: Sequence[tuple[str, str, int]]) -> None:
    """Give the showings in one key at or before a time (µs) to another key: (key, to, until), in their order."""
    pipe = client.pipeline(transaction=False)
    for key, to, until in moves:
        pipe.eval(_MOVE_SHOWN, 2, key, to, until)
    pipe.execute()


def begin(client: Client, keys: RedisKeys, mark: Watermark) -> None:
    """Begin a generation. It is served at once when the present one is missing or not filled."""
    client.eval(_START, 2, keys.watermark, keys.building, mark.to_json(), mark.fill)


def advance(client: Client, keys: RedisKeys, since: Watermark | None, to: Watermark, tables: str) -> int:
    """Replace the watermark: 1; 0 when it is not `since`, -1 when `to` names a generation that is not written."""
    given = (since.to_json() if since else "", to.to_json(), tables, "filled" if to.filled else "")
    done: int = client.eval(_ADVANCE, 3, keys.watermark, keys.tables, keys.building, *given)
    return done
