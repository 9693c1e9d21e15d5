"""A key/value cache of slots: each row writes at its own position, and a slot is reused when its row ends."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

SPARE = 0.9  # share of the free memory a cache may take


class SlotCache(Cache):
    """Preallocated keys and values of S slots and C columns a layer, for one decode step at a time.

    A column's index is its position. `see` says before each model call which slots and columns it works on.
    """

    def __init__(self, slots: int, columns: int):
        super().__init__(layers=[])
        self.slots, self.columns = slots, columns
        self.keys: list[Tensor] = []  # per layer [S, C, H, d]: what a row writes in a step is contiguous
        self.values: list[Tensor] = []

    def see(self, rows: int, width: int, positions: Tensor) -> None:
        """The next call is for the first `rows` slots, sees `width` columns and writes to `positions` int64 [rows]."""
        self.rows, self.width = rows, width
        self._where = torch.arange(rows, device=positions.device), positions

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one position a row ([rows, H, 1, d]); returns views [rows, H, width, d]."""
        assert key_states.shape[0] == self.rows
        assert key_states.shape[2] == 1
        self.keys[layer_idx][self._where] = key_states[:, :, 0]
        self.values[layer_idx][self._where] = value_states[:, :, 0]
        view = slice(0, self.rows), slice(0, self.width)
        return self.keys[layer_idx][view].transpose(1, 2), self.values[layer_idx][view].transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.width

    def fill(self, prefill: DynamicCache, source: Tensor, slots: Tensor) -> None:
        """Copy rows `source` [n] of a prefilled cache into `slots` [n]: a prompt is computed once for its group."""
        if not self.keys:
            for layer in prefill.layers:
                _, heads, _, depth = layer.keys.shape
                shape = (self.slots, self.columns, heads)
                self.keys.append(layer.keys.new_zeros((*shape, depth)))
                self.values.append(layer.values.new_zeros((*shape, layer.values.shape[-1])))
        for index, layer in enumerate(prefill.layers):
            length = layer.keys.shape[2]
            self.keys[index][slots, :length] = layer.keys.transpose(1, 2)[source]
            self.values[index][slots, :length] = layer.values.transpose(1, 2)[source]

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        """Copy the first `width` columns of slots `source` [n] over slots `target` [n], to close gaps."""
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[target, :width] = tensor[source, :width]

    def wipe(self, slots: Tensor) -> None:
        """Forget slots [n] that hold a NaN: masked out it would still reach the slot's next owner."""
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[slots] = 0


def bytes_per_column(model: Any) -> int:
    """Memory of one position's keys and values in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    depth = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * depth * model.dtype.itemsize)


def rows_that_fit(model: Any, columns: int) -> int:
    """Slots of `columns` positions for which a GPU has memory left, at least one; without a GPU there is no bound."""
    if model.device.type != "cuda":
        return 1 << 30
    free, _ = torch.cuda.mem_get_info(model.device)
    reusable = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return max(1, int(SPARE * (free + reusable)) // (columns * bytes_per_column(model)))
