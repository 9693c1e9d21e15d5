"""Keys and values of rows in flight. A prompt's stand there once, for all rollouts of its group.

Attention of a decode step is split accordingly: the queries of all rows of a prompt meet its keys in one product, each
row's own keys are met alone, and one softmax runs over both. Most of a short rollout's context is its prompt, so
this reads a fraction of the memory.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

SPARE = 0.9  # share of the free memory a cache may take


class _Route(NamedTuple):
    own: Tensor  # int64 [N * H]: the column each row writes to
    place: Tensor  # int64 [N * H]: each row's place among its prompt's
    of_place: Tensor  # int64 [P * H * M]: the row in each place, any where it is empty


class SlotCache(Cache):
    """P prompts of at most W columns, each for at most M rows at a time, and the responses of S rows, C columns each.

    `see` says before each model call which slots and columns it works on. Where a model's attention can be replaced
    (`shared`, see attention.py) it calls `attend`; else `update` hands it prompt and response joined.
    """

    def __init__(self, prompts: int, members: int, prompt_columns: int, slots: int, columns: int, shared: bool):
        super().__init__(layers=[])
        self.prompts, self.members, self.prompt_columns = prompts, members, prompt_columns
        self.slots, self.columns, self.shared = slots, columns, shared
        self.prompt_keys: list[Tensor] = []  # per layer [P + 1, H, W, d]: the last is for rows without an owner
        self.prompt_values: list[Tensor] = []
        self.keys: list[Tensor] = []  # per layer [S, H, C, d]
        self.values: list[Tensor] = []

    def see(
        self,
        prompts: int,
        prompt_width: int,
        group: Tensor,
        member: Tensor,
        width: int,
        columns: Tensor,
        column: int | None = None,
    ) -> None:
        """What the next call works on.

        The first `prompts` prompt slots and `prompt_width` of their columns; for the rows [N] the prompt slot `group`
        and the place `member` in it, int64; of the responses `width` columns, and the one to write to, `columns` int64:
        `column`, where it is known to be the same for all.
        """
        self.rows, self.width, self.prompt_width = len(group), width, prompt_width
        self._prompts, self._group, self._member = prompts, group, member
        self._columns, self._column = columns, column
        self._routes: dict[int, _Route] = {}

    def _route(self, heads: int) -> "_Route":
        """Where rows and heads [N, H] stand in flat tensors of this call: the same in all layers."""
        if heads not in self._routes:
            device = self._group.device
            row, head = torch.arange(self.rows, device=device)[:, None], torch.arange(heads, device=device)
            own = (row * heads + head) * self.columns + self._columns[:, None]
            place = (self._group[:, None] * heads + head) * self.members + self._member[:, None]
            of_place = place.new_zeros(self._prompts * heads * self.members)
            of_place.index_copy_(0, place.flatten(), (row * heads + head).flatten())
            self._routes[heads] = _Route(own.flatten(), place.flatten(), of_place)
        return self._routes[heads]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one position a row ([N, H, 1, d]); returns the responses' columns, [N, H, width, d].

        For a model that runs its own attention, prompt and response: [N, H, prompt_width + width, d].
        """
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        for stored, states in ((keys, key_states), (values, value_states)):
            if self._column is not None:  # a slice: a third of the time
                stored[: self.rows, :, self._column] = states[:, :, 0]
                continue
            depth = states.shape[-1]
            stored.view(-1, depth).index_copy_(0, self._route(states.shape[1]).own, states.reshape(-1, depth))
        keys, values = keys[: self.rows, :, : self.width], values[: self.rows, :, : self.width]
        if self.shared:
            return keys, values
        prompt_keys, prompt_values = self.prompt_keys[layer_idx], self.prompt_values[layer_idx]
        part = slice(0, self.prompt_width)
        keys = torch.cat([prompt_keys[self._group, :, part], keys], 2)
        return keys, torch.cat([prompt_values[self._group, :, part], values], 2)

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
        """Attention of one query a row over its prompt and its response.

        query [N, Hq, 1, d], Hq a multiple of H; keys, values as `update` gave them; mask, additive, [N, 1, 1,
        prompt_width + width]. Returns [N, 1, Hq, d]. Scores and softmax in float32 at least.
        """
        rows, heads, _, depth = query.shape
        kv_heads = keys.shape[1]
        query = (query * scaling).reshape(rows, kv_heads, heads // kv_heads, depth)
        used, part = slice(0, self._prompts), slice(0, self.prompt_width)
        prompt_keys, prompt_values = self.prompt_keys[layer][used, :, part], self.prompt_values[layer][used, :, part]

        scores = torch.cat([self._of_rows(_scores(self._of_prompts(query), prompt_keys)), _scores(query, keys)], -1)
        weights = (scores + mask).softmax(-1).to(values.dtype)
        at_prompt = self._of_prompts(weights)[..., : self.prompt_width] @ prompt_values
        out = self._of_rows(at_prompt) + weights[..., self.prompt_width :] @ values
        return out.reshape(rows, 1, heads, -1)

    def _of_prompts(self, x: Tensor) -> Tensor:
        """[N, H, g, n] of the rows as [P, H, M * g, n] of their prompts; what empty places hold means nothing."""
        _, heads, group, size = x.shape
        places = x.reshape(-1, group * size).index_select(0, self._route(heads).of_place)
        return places.view(self._prompts, heads, self.members * group, size)

    def _of_rows(self, y: Tensor) -> Tensor:
        """The way back."""
        _, heads, both, size = y.shape
        group = both // self.members
        rows = y.reshape(-1, group * size).index_select(0, self._route(heads).place)
        return rows.view(self.rows, heads, group, size)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.prompt_width + self.width

    def hold(self, prefill: DynamicCache, prompts: Tensor) -> None:
        """Keep the rows of a prefilled cache in the prompt slots `prompts` int64 [n]."""
        for index, layer in enumerate(prefill.layers):
            length = layer.keys.shape[2]
            if len(self.keys) == index:
                for stored, states in zip(self._stored(), (layer.keys, layer.values), strict=True):
                    _, heads, _, depth = states.shape
                    stored[0].append(states.new_zeros(self.prompts + 1, heads, self.prompt_columns, depth))
                    stored[1].append(states.new_zeros(self.slots, heads, self.columns, depth))
            for held, states in ((self.prompt_keys, layer.keys), (self.prompt_values, layer.values)):
                held[index][prompts, :, :length] = states
                held[index][prompts, :, length:] = 0  # a NaN left there would pass through any mask

    def _stored(self) -> tuple[tuple[list[Tensor], list[Tensor]], ...]:
        return (self.prompt_keys, self.keys), (self.prompt_values, self.values)

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        """Copy the first `width` columns of slots `source` int64 [n] over slots `target`, to close gaps."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :width] = tensor[source, :, :width]

    def wipe(self, slots: Tensor) -> None:
        """Forget the responses in these slots."""
        for tensor in (*self.keys, *self.values):
            tensor[slots] = 0


def _scores(query: Tensor, keys: Tensor) -> Tensor:
    """query [.., m, d] times keys [.., n, d]: [.., m, n], at least float32: in bfloat16 a score of 10 is off by .03."""
    if query.dtype in (torch.float32, torch.float64):
        return query @ keys.transpose(-1, -2)
    if query.device.type == "cuda":
        left, right = query.flatten(0, 1), keys.flatten(0, 1)
        return torch.bmm(left, right.transpose(1, 2), out_dtype=torch.float32).unflatten(0, query.shape[:2])
    return query.float() @ keys.float().transpose(-1, -2)


def bytes_per_column(model: Any) -> int:
    """Memory of one position's keys and values in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    depth = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * depth * model.dtype.itemsize)


def columns_that_fit(model: Any) -> int:
    """Columns for which a GPU has memory left; without a GPU there is no bound."""
    if model.device.type != "cuda":
        return 1 << 60
    free, _ = torch.cuda.mem_get_info(model.device)
    reusable = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return int(SPARE * (free + reusable)) // bytes_per_column(model)
