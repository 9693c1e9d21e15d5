"""Rows in flight: buffers of fixed size, of which a decode step uses the first rows and columns.

A step changes tensors in place and asks the device nothing, so that it can be captured in a CUDA graph and replayed.
Rows that ended, and rows that wait for the whole vocabulary (superposition.perturb), stay in the batch without
advancing until somebody looks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lgrpo import decode, superposition
from lgrpo.cache import SlotCache
from lgrpo.decode import TextSettings
from lgrpo.policy import Policy
from lgrpo.prefill import Prefilled
from lgrpo.rollout import LATENT, Request, Rollout
from lgrpo.superposition import LatentSettings


class Slots:
    """S slots for prompts of at most P positions and responses of at most L, all tensors on the device."""

    def __init__(
        self, policy: Policy, latent: LatentSettings, text: TextSettings, slots: int, longest_prompt: int, limit: int
    ):
        self.policy, self.latent, self.text, self.limit = policy, latent, text, limit
        self.slots, self.longest_prompt = slots, longest_prompt
        # One column more than a row can fill: a row at its limit still writes somewhere until it is taken out.
        self.cache = SlotCache(slots, longest_prompt + limit + 1)
        self.requests: list[tuple[int, Request] | None] = [None] * slots  # number and request of each slot's owner
        device = policy.device
        self.eos = torch.tensor(policy.eos_ids, device=device)
        self.columns = torch.arange(self.cache.columns, device=device)

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(slots, *shape, dtype=dtype, device=device)

        real = torch.float64 if policy.dtype == torch.float64 else torch.float32
        self.hidden = zeros(policy.model.config.get_text_config().hidden_size, dtype=policy.dtype)
        self.keys = zeros(dtype=torch.int64)
        self.steps = zeros(dtype=torch.int64)  # positions of the response so far
        self.lengths = zeros(dtype=torch.int64)  # columns in the cache: prompt and response
        self.active = zeros(dtype=torch.bool)
        self.in_chain = zeros(dtype=torch.bool)
        self.ended = zeros(dtype=torch.bool)  # by an end-of-sequence token
        self.waiting = zeros(dtype=torch.bool)  # for the whole vocabulary
        self.broken = zeros(dtype=torch.bool)  # a logit was no number
        self.noise_scale = zeros(dtype=torch.float32)
        self.temperature = zeros(dtype=torch.float32)
        # The record. One column more, as in the cache.
        self.tokens = zeros(limit + 1, dtype=torch.int64)
        self.indices = zeros(limit + 1, latent.k, dtype=torch.int64)
        self.scores = zeros(limit + 1, latent.k, dtype=real)
        self.logprob = zeros(limit + 1, dtype=real)
        self._per_row = (
            self.hidden, self.keys, self.steps, self.lengths, self.active, self.in_chain, self.ended, self.waiting,
            self.broken, self.noise_scale, self.temperature, self.tokens, self.indices, self.scores, self.logprob,
        )  # fmt: skip

    def fits(self, slots: int, longest_prompt: int) -> bool:
        """Whether these buffers serve so many rows of such prompts."""
        return slots <= self.slots and longest_prompt <= self.longest_prompt

    # -- one decode step

    def step(self, rows: int, width: int, chains: bool, whole: bool) -> None:
        """Act on the last hidden state of the first `rows` slots, record it, and run the model on it.

        width: columns of the cache the step sees, more than any active row's length. chains, whole: see decode.act.
        """
        view = slice(0, rows)
        keys, steps, lengths = self.keys[view], self.steps[view], self.lengths[view]
        now = decode.Rows(keys, steps, self.in_chain[view], self.noise_scale[view], self.temperature[view])
        logits = self.policy.head(self.hidden[view])
        action = decode.act(logits, now, self.policy.end_id, self.latent, self.text, chains, whole)
        go = self.active[view] & action.proven
        self._record(rows, action, go)

        embeds = self.policy.embedding(action.tokens.clamp(min=0))
        if chains:
            weights = superposition.weights_of(action.scores, self.latent.tau)
            soft = superposition.embed(action.indices, weights, self.policy.embedding)
            embeds = torch.where((action.tokens == LATENT)[:, None], soft, embeds)
        self.cache.see(rows, width, lengths)
        allowed = self.columns[:width] <= lengths[:, None]
        hidden = self.policy.hidden(embeds[:, None], allowed[:, None], lengths[:, None], self.cache)[:, 0]
        self.hidden[view] = torch.where(go[:, None], hidden, self.hidden[view])
        steps += go
        lengths += go
        self.waiting[view] = self.active[view] & ~action.proven
        self.active[view] &= ~(self.ended[view] | self.broken[view] | (steps >= self.limit))

    def _record(self, rows: int, action: decode.Action, go: Tensor) -> None:
        view, row = slice(0, rows), torch.arange(rows, device=go.device)
        at = self.steps[view]  # a row that does not advance writes there again, or beyond its end
        self.tokens[row, at] = torch.where(action.finite, action.tokens, self.policy.pad_id)
        self.logprob[row, at] = torch.where(action.finite, action.logprob, 0.0)
        self.indices[row, at], self.scores[row, at] = action.indices, action.scores
        self.in_chain[view] &= ~go | (action.tokens == LATENT)
        self.ended[view] |= go & action.finite & (action.tokens[:, None] == self.eos).any(1)
        self.broken[view] |= go & ~action.finite

    def pause(self) -> Tensor:
        """Let no row advance: until `resume`, which takes what this returns, a step leaves the state as it is."""
        active = self.active.clone()
        self.active.zero_()
        return active

    def resume(self, active: Tensor) -> None:
        self.active.copy_(active)

    # -- between steps

    def clear(self) -> None:
        """All slots are free."""
        self.requests = [None] * self.slots
        self.active.zero_()

    @property
    def occupied(self) -> int:
        """Slots that have an owner."""
        return sum(owner is not None for owner in self.requests)

    @property
    def top(self) -> int:
        """One more than the last slot that has an owner."""
        return max((slot + 1 for slot, owner in enumerate(self.requests) if owner is not None), default=0)

    def admit(self, batch: Sequence[tuple[int, Request]], prompts: Prefilled) -> None:
        """Give each request the first free slot; its prompt is among those prefilled."""
        free = (slot for slot, owner in enumerate(self.requests) if owner is None)
        taken = [slot for slot, _ in zip(free, batch, strict=False)]
        device = self.policy.device
        slots = torch.tensor(taken, device=device)
        requests = [request for _, request in batch]
        source = torch.tensor([prompts.place[request.prompt] for request in requests], device=device)
        self.cache.fill(prompts.cache, source, slots)
        self.hidden[slots], self.lengths[slots] = prompts.hidden[source], prompts.lengths[source]
        self.keys[slots] = torch.tensor([r.key for r in requests], device=device)
        self.in_chain[slots] = torch.tensor([r.latent for r in requests], device=device)
        self.noise_scale[slots] = torch.tensor([r.noise_scale for r in requests], device=device)
        self.temperature[slots] = torch.tensor([r.temperature for r in requests], device=device)
        self.steps[slots] = 0
        self.active[slots] = True
        for flags in (self.ended, self.waiting, self.broken):
            flags[slots] = False
        for slot, owner in zip(taken, batch, strict=True):
            self.requests[slot] = owner

    def look(self, rows: int) -> tuple[list[int], bool, int]:
        """Slots whose rows are done, whether a row waits for the whole vocabulary, and the longest row's columns."""
        view = slice(0, rows)
        flags = torch.stack([self.active[view].long(), self.waiting[view].long(), self.lengths[view]]).tolist()
        done = [slot for slot in range(rows) if self.requests[slot] is not None and not flags[0][slot]]
        alive = [slot for slot in range(rows) if flags[0][slot]]
        return done, any(flags[1][slot] for slot in alive), max((flags[2][slot] for slot in alive), default=0)

    def take(self, done: Sequence[int]) -> list[tuple[int, Rollout]]:
        """Rollouts of these slots, which become free, with the numbers of their requests."""
        slots = torch.tensor(done, device=self.policy.device)
        kept = (self.tokens, self.indices, self.scores, self.logprob, self.steps, self.ended, self.broken)
        tokens, indices, scores, logprob, steps, ended, broken = (tensor[slots].cpu() for tensor in kept)
        if bool(broken.any()):  # a NaN in the cache would reach a later owner, masked or not
            self.cache.wipe(slots[broken.to(slots.device)])
        out = []
        for place, slot in enumerate(done):
            owner = self.requests[slot]
            assert owner is not None
            number, request = owner
            length = int(steps[place])
            rollout = Rollout(
                request.prompt,
                tokens[place, :length].clone(),
                indices[place, :length].clone(),
                scores[place, :length].clone(),
                logprob[place, :length].clone(),
                valid=bool(ended[place]),
                broken=bool(broken[place]),
            )
            out.append((number, rollout))
            self.requests[slot] = None
        return out

    def compact(self) -> None:
        """Move the last rows into the gaps, so that the rows in flight are the first ones."""
        count = self.occupied
        movers = [slot for slot in range(count, self.slots) if self.requests[slot] is not None]
        if not movers:
            return
        gaps = [slot for slot in range(count) if self.requests[slot] is None]
        source = torch.tensor(movers, device=self.policy.device)
        target = torch.tensor(gaps, device=self.policy.device)
        self.cache.move(source, target, int(self.lengths[source].max()))
        for tensor in self._per_row:
            tensor[target] = tensor[source]
        self.active[source] = False
        for gap, mover in zip(gaps, movers, strict=True):
            self.requests[gap], self.requests[mover] = self.requests[mover], None
