"""Key-value caches whose rows can be repeated from a prompt and dropped when a completion has ended.

A cache that grows by concatenation copies itself every token, and dropping rows copies what is left. For plain
attention layers the cache here is allocated once: a new token is written in place, and a dropped row costs the copy of
one other row into its slot. Other layers (linear attention, sliding windows) keep transformers' own cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer


class _Filled(Protocol):
    """A plain attention layer after the prefill."""

    keys: Tensor
    values: Tensor


class SlottedLayer(DynamicLayer):
    """One layer's keys and values, [slots, heads, capacity, head size], of which the first rows and tokens are used."""

    def __init__(
        self,
        keys: Float[Tensor, "P heads L d"],
        values: Float[Tensor, "P heads L d"],
        rows: Int[Tensor, " R"],
        capacity: int,
    ) -> None:
        """Row i starts as a copy of prompt `rows[i]`; `capacity` is the longest row in tokens, prompt included."""
        super().__init__()
        self.length, self.alive = keys.shape[-2], len(rows)
        self.dtype, self.device = keys.dtype, keys.device
        self._keys, self._values = (self._spread(state, rows, capacity) for state in (keys, values))
        self.is_initialized = True

    @staticmethod
    def _spread(state: Tensor, rows: Tensor, capacity: int) -> Tensor:
        _, heads, length, size = state.shape
        slots = state.new_empty(len(rows), heads, capacity, size)
        slots[:, :, :length] = state.index_select(0, rows)
        return slots

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens behind the old ones; returns views of all keys and values so far."""
        end = self.length + key_states.shape[-2]
        self._keys[: self.alive, :, self.length : end] = key_states
        self._values[: self.alive, :, self.length : end] = value_states
        self.length = end
        return self._keys[: self.alive, :, :end], self._values[: self.alive, :, :end]

    def get_seq_length(self) -> int:
        """Tokens held so far."""
        return self.length

    def move_rows(self, sources: Int[Tensor, " moved"], slots: Int[Tensor, " moved"], alive: int) -> None:
        """Copy rows `sources` into `slots` and forget every row from `alive` on."""
        if len(slots):
            for state in (self._keys, self._values):
                state[slots, :, : self.length] = state[sources, :, : self.length]
        self.alive = alive


class RowCache:
    """The cache of one decoding batch: prefilled per prompt, then one row per completion."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.cache: Cache = DynamicCache(config=model.config)
        self._slotted: list[SlottedLayer] = []

    def repeat(self, rows: Int[Tensor, " R"], capacity: int) -> None:
        """Turn the cache of P prompts into that of R rows; row i continues prompt `rows[i]`."""
        if any(type(layer) is not DynamicLayer for layer in self.cache.layers):
            self.cache.reorder_cache(cast(torch.LongTensor, rows))
            return
        for index, layer in enumerate(self.cache.layers):
            filled = cast(_Filled, layer)
            # Replaced one by one: only one layer is held twice at a time.
            self._slotted.append(SlottedLayer(filled.keys, filled.values, rows, capacity))
            self.cache.layers[index] = self._slotted[-1]

    def keep(self, order: Sequence[int], device: torch.device) -> None:
        """Keep the rows `order` (new slot -> old row), as `closed_up` gives it."""
        if not self._slotted:
            self.cache.reorder_cache(cast(torch.LongTensor, torch.tensor(order, device=device)))
            return
        moves = [(source, slot) for slot, source in enumerate(order) if source != slot]
        sources = torch.tensor([source for source, _ in moves], dtype=torch.long, device=device)
        slots = torch.tensor([slot for _, slot in moves], dtype=torch.long, device=device)
        for layer in self._slotted:
            layer.move_rows(sources, slots, len(order))


def closed_up(alive: Sequence[bool]) -> list[int]:
    """New slot -> old row such that the living rows fill the first slots and as few rows as possible move.

    The rows behind the last slot kept are moved into the gaps in front; all others stay where they are.
    """
    count = sum(alive)
    movers = iter(row for row in range(count, len(alive)) if alive[row])
    return [slot if alive[slot] else next(movers) for slot in range(count)]
