"""What the server itself does, atomically: scripts in Lua that write states and move the watermark.

`WRITE` has the keys watermark, building, recent, and one of each user; the arguments: the generation, the way of
writing, number of pairs of `recent`, the pairs (time, user), then those of each user. It writes only a generation
that is served or being filled. It returns the numbers, from 1, of the users that were not written, or {0} for none.
"""

WRITE = """
local marks = (redis.call('GET', KEYS[1]) or '') .. (redis.call('GET', KEYS[2]) or '')
if not string.find(marks, ARGV[1], 1, true) then return {0} end
local failed, at = {}, 3 + 2 * ARGV[3]
for i = 4, #KEYS do
  if ARGV[2] == 'add' then
    at = at + 1
    if not redis.call('SET', KEYS[i], ARGV[at], 'NX') then failed[#failed + 1] = i - 3 end
  else
    at = at + 2
    if redis.call('GETRANGE', KEYS[i], 0, 7) ~= ARGV[at - 1] then
      failed[#failed + 1] = i - 3
    elseif ARGV[at] == '' then
      redis.call('DEL', KEYS[i])
    else
      redis.call('SET', KEYS[i], ARGV[at])
    end
  end
end
for i = 4, 2 + 2 * ARGV[3], 2 do
  if ARGV[i] == '' then
    redis.call('ZREM', KEYS[3], ARGV[i + 1])
  else
    redis.call('ZADD', KEYS[3], 'GT', ARGV[i], ARGV[i + 1])
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -%d - 1)
return failed
"""
"""add: set values that are absent, an argument of each user. replace: set values that still begin with the digest
that was read, two arguments: the digest, "" for no value, and the new value, "" to delete it."""

START = """
redis.call('SET', KEYS[2], ARGV[2])
local mark = redis.call('GET', KEYS[1])
if not mark or string.sub(mark, 1, 15) ~= '{"filled": true' then redis.call('SET', KEYS[1], ARGV[1]) end
"""
"""Begins a generation. Keys: watermark, building; arguments: the new watermark, its generation."""

ADVANCE = """
local mark = redis.call('GET', KEYS[1]) or ''
if mark ~= ARGV[1] then return 0 end
local fill = string.match(ARGV[2], '"fill": "(%w*)"')
if string.match(mark, '"fill": "(%w*)"') ~= fill and redis.call('GET', KEYS[3]) ~= fill then return -1 end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then redis.call('SET', KEYS[2], ARGV[3]) end
if ARGV[4] == 'filled' and redis.call('GET', KEYS[3]) == fill then redis.call('DEL', KEYS[3]) end
return 1
"""
"""Replaces the watermark if it is still the one that was read, "" for none. Keys: watermark, tables, building;
arguments: the watermark that was read, the new one, what is kept of the tables, "filled" when it is filled. Returns
-1 when the new one names a generation that is neither served nor being filled."""
