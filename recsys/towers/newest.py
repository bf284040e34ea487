"""The user vector after the newest event of each history, in numpy: what a service computes for each request.

It equals what `UserTower.forward` returns at that event, and takes a single request two thirds of torch's time, or
less: its operations are many and small. In the last block, only one position has a query and the layers behind it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
from torch import Tensor, nn

from features.arrays import Floats, Ints
from features.content.spaces import unit
from features.interactions import UserStates
from recsys.towers.history import History
from recsys.towers.user_tower import Block, UserTower

EVENTS_AT_ONCE = 2_000
"""Events of the histories whose user vectors are computed together: what they need fits in the cache of a core."""

Encode = Callable[[UserStates, Floats], Floats]
"""(states (b,), rotated item vectors (n, d)) -> rotated user vectors (b, d), see `TwoTowers.user_vectors`."""

Newest = Callable[[Floats, History[np.ndarray], Ints], Floats]
"""(rotated vectors (b, t, d) of the items of a history (b, t), position of its last event (b,)) -> (b, d)."""


def encode(states: UserStates, item_vectors: Floats, longest: int, events_at_once: int, newest: Newest) -> Floats:
    """User vectors (b, d) of states, similar lengths of history together; zero rows without a positive event.

    longest: newest events that are read; events_at_once: of the histories that `newest` is called with, or one
    history.
    """
    lengths = np.minimum(states.items.lengths, longest)
    out = np.zeros((len(states), item_vectors.shape[1]), dtype=np.float32)
    order = np.flatnonzero(states.positives().lengths > 0)
    order = order[np.argsort(-lengths[order], kind="stable")]  # similar lengths in one batch: less padding
    while len(order):
        t = int(lengths[order[0]])
        part, order = np.split(order, [max(1, events_at_once // t)])
        history = History.newest(states[part], t)  # (b, t)
        out[part] = newest(item_vectors[history.items], history, lengths[part] - 1)
    return out


@dataclass(frozen=True)
class _Linear:
    """weight (d, m), contiguous; bias (m,)."""

    weight: Floats
    bias: Floats

    @classmethod
    def of(cls, layer: nn.Linear) -> "_Linear":
        return cls(np.ascontiguousarray(_array(layer.weight).T), _array(layer.bias))

    def __call__(self, x: Floats) -> Floats:
        """(..., d) -> (..., m), new. One product: numpy would make one of each history."""
        y: Floats = x.reshape(-1, x.shape[-1]) @ self.weight
        y += self.bias
        return y.reshape(*x.shape[:-1], len(self.bias))

    def outputs(self, which: slice) -> "_Linear":
        """The layer with some of its outputs."""
        return _Linear(np.ascontiguousarray(self.weight[:, which]), self.bias[which])


@dataclass(frozen=True)
class _Norm:
    weight: Floats
    bias: Floats
    eps: np.float32

    @classmethod
    def of(cls, layer: nn.LayerNorm) -> "_Norm":
        return cls(_array(layer.weight), _array(layer.bias), np.float32(layer.eps))

    def __call__(self, x: Floats) -> Floats:
        """(..., d) normalised over the last axis, new."""
        y: Floats = x - x.mean(-1, keepdims=True)
        variance = np.einsum("...d,...d->...", y, y)[..., None] / np.float32(x.shape[-1])
        y /= np.sqrt(variance + self.eps)
        y *= self.weight
        y += self.bias
        return y


class _Block:
    """`Block.forward` without dropout."""

    def __init__(self, block: Block) -> None:
        self.heads = block.heads
        self.norm1, self.norm2 = _Norm.of(block.norm1), _Norm.of(block.norm2)
        layers = (block.out, block.up, block.down, block.gate1, block.gate2)
        self.out, self.up, self.down, self.gate1, self.gate2 = map(_Linear.of, layers)
        self.qkv, d = _Linear.of(block.qkv), block.out.out_features
        scale = np.float32((d // block.heads) ** -0.5)  # of the scores, which are linear in the queries
        self.qkv.weight[:, :d] *= scale
        self.qkv.bias[:d] *= scale
        self.q, self.kv = self.qkv.outputs(slice(d)), self.qkv.outputs(slice(d, None))

    def __call__(self, x: Floats) -> Floats:
        """(b, t, d) -> (b, t, d). Position i reads positions 0..i."""
        q, k, v = self._heads(self.qkv(self.norm1(x)), 3)  # (b, heads, t, d / heads) each
        scores = q @ k.swapaxes(2, 3)  # (b, heads, t, t)
        scores += _future(x.shape[1])
        return self._rest(x, _merged(_softmax(scores) @ v))

    def newest(self, x: Floats, last: Ints) -> Floats:
        """The outputs at one position of each history, last (b,): (b, d)."""
        at, normed = np.arange(len(last)), self.norm1(x)
        k, v = self._heads(self.kv(normed), 2)  # (b, heads, t, d / heads) each
        (q,) = self._heads(self.q(normed[at, last])[:, None], 1)  # (b, heads, 1, d / heads)
        scores = q @ k.swapaxes(2, 3)  # (b, heads, 1, t)
        is_future = np.arange(x.shape[1]) > last[:, None]  # (b, t)
        scores += np.where(is_future, np.float32(-np.inf), np.float32(0))[:, None, None]
        return self._rest(x[at, last], _merged(_softmax(scores) @ v)[:, 0])

    def _rest(self, x: Floats, y: Floats) -> Floats:
        """What follows the attention. x: inputs of the block; y: outputs of the attention, before `out`."""
        attended = self.out(y)
        attended *= _sigmoid(self.gate1(x))
        attended += x
        both = self.up(self.norm2(attended))
        value, swish = np.split(both, 2, axis=-1)  # (..., 4 d) each
        inner = _sigmoid(swish.copy())
        inner *= swish
        inner *= value
        out = self.down(inner)
        out *= _sigmoid(self.gate2(attended))
        out += attended
        return out

    def _heads(self, x: Floats, n: int) -> Floats:
        """(b, t, n d) -> (n, b, heads, t, d / heads)."""
        b, t, width = x.shape
        return x.reshape(b, t, n, self.heads, width // (n * self.heads)).transpose(2, 0, 3, 1, 4)


class NewestUserVectors:
    """The user vectors of a trained tower, as its parameters are now: later changes of them are not seen."""

    def __init__(self, tower: UserTower, rotation: Tensor) -> None:
        """tower, rotation (d, d): of `TwoTowers`, on a CPU."""
        self._config = tower.config
        self._rotation = _array(rotation)
        self._position, self._kind, self._event, self._wait, self._hour, self._day, profile = (
            _array(table.weight)
            for table in (tower.position, tower.kind, tower.event, tower.wait, tower.hour, tower.day, tower.profile)
        )
        self._blocks = [_Block(cast(Block, block)) for block in tower.blocks]
        self._norm = _Norm.of(tower.norm)
        self._profile = np.ascontiguousarray(profile.T)
        self._forget = tower.forget.detach().sigmoid().item()

    def __call__(self, states: UserStates, item_vectors: Floats) -> Floats:
        """See `TwoTowers.user_vectors`."""
        with np.errstate(over="ignore"):  # exp of a large number is inf, and its sigmoid 0
            return encode(states, item_vectors, self._config.history, EVENTS_AT_ONCE, self.newest)

    def newest(self, vectors: Floats, history: History[np.ndarray], last: Ints) -> Floats:
        """See `Newest`."""
        vectors = vectors @ self._rotation.T
        t, d = vectors.shape[1:]
        at, root = np.arange(len(last)), np.float32(d**0.5)
        x: Floats = vectors + self._position[:t]
        x += self._kind[history.positive.astype(np.int64)]
        x += self._event[history.types]
        if self._config.times:
            x += self._wait[history.gaps]
        x *= root
        for block in self._blocks[:-1]:
            x = block(x)
        age = last[:, None] - np.arange(t)  # (b, t)
        weights = np.where(history.positive & (age >= 0), self._forget ** np.maximum(age, 0), 0).astype(np.float32)
        weights /= weights.sum(1, keepdims=True).clip(min=1e-6)
        recent = (weights[:, None] @ vectors)[:, 0] * root  # (b, d)
        out = self._norm(self._blocks[-1].newest(x, last))
        out += recent @ self._profile
        if self._config.calendar:
            hours = history.hours[at, last]
            out += self._hour[hours % 24] + self._day[hours // 24]
        rotated: Floats = unit(out) @ self._rotation
        return rotated


def _merged(x: Floats) -> Floats:
    """(b, heads, t, d / heads) -> (b, t, d)."""
    b, heads, t, size = x.shape
    return x.swapaxes(1, 2).reshape(b, t, heads * size)


@lru_cache(maxsize=4)
def _future(t: int) -> Floats:
    """(t, t): -inf where the position of a key is after that of the query, else 0."""
    return np.triu(np.full((t, t), -np.inf, dtype=np.float32), 1)


def _softmax(x: Floats) -> Floats:
    """Over the last axis, in place."""
    x -= x.max(-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(-1, keepdims=True)
    return x


def _sigmoid(x: Floats) -> Floats:
    """In place."""
    np.negative(x, out=x)
    np.exp(x, out=x)
    x += 1
    return np.reciprocal(x, out=x)


def _array(parameter: Tensor) -> Floats:
    """A copy of the values of a parameter."""
    values: Floats = parameter.detach().numpy().copy()
    return values
