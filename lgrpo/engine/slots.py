"""Rows in flight: buffers of fixed size, of which a decode step uses the first rows and columns.

A step changes tensors in place and asks the device nothing, so that it can be captured in a CUDA graph and replayed.
Rows that ended, and rows that wait for the whole vocabulary (superposition.perturb), stay in the batch without
advancing until somebody looks.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lgrpo import superposition
from lgrpo.engine import decode
from lgrpo.engine.decode import TextSettings
from lgrpo.engine.prefill import prefill
from lgrpo.engine.seats import Arrival, Owner, Prompt, Shelf, Size
from lgrpo.policy import Policy
from lgrpo.policy.cache import SlotCache
from lgrpo.rollout import LATENT, Part, Rollout
from lgrpo.superposition import LatentSettings


class Slots:
    """Slots for responses of at most L positions, all tensors on the device."""

    def __init__(self, policy: Policy, latent: LatentSettings, text: TextSettings, size: Size, limit: int):
        self.policy, self.latent, self.text, self.size, self.limit = policy, latent, text, size, limit
        # One column more than a row can fill: a row at its limit still writes somewhere until it is taken out.
        self.cache = SlotCache(
            size.prompts, size.members, size.longest_prompt, size.slots, limit + 1, policy.shares_prompts
        )
        self.owners: list[Owner | None] = [None] * size.slots
        self.shelf = Shelf(size.prompts, size.members, {})
        device = policy.device
        self.eos = torch.tensor(policy.eos_ids, device=device)
        self.columns = torch.arange(max(size.longest_prompt, limit + 1), device=device)

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(size.slots, *shape, dtype=dtype, device=device)

        real = torch.float64 if policy.dtype == torch.float64 else torch.float32
        self.hidden = zeros(policy.model.config.get_text_config().hidden_size, dtype=policy.dtype)
        self.keys = zeros(dtype=torch.int64)
        self.steps = zeros(dtype=torch.int64)  # positions of the response so far
        self.prompt_lengths = zeros(dtype=torch.int64)
        self.group = zeros(dtype=torch.int64)  # prompt slot, and place in it
        self.place = zeros(dtype=torch.int64)
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
            self.hidden, self.keys, self.steps, self.prompt_lengths, self.group, self.place, self.active,
            self.in_chain, self.ended, self.waiting, self.broken, self.noise_scale, self.temperature, self.tokens,
            self.indices, self.scores, self.logprob,
        )  # fmt: skip
        # Of each prompt: the hidden state that predicts a response's first position.
        self.prompt_hidden = self.hidden.new_zeros(size.prompts, self.hidden.shape[1])

    # -- one decode step

    def step(self, rows: int, width: int, chains: bool, whole: bool, tight: bool = False) -> None:
        """Act on the last hidden state of the first `rows` slots, record it, and run the model on it.

        width: columns of the responses the step sees, more than any active row has. chains, whole: see decode.act.
        tight: only the prompt slots and columns in use; all rows must have an owner, and sizes change with the prompts.
        """
        view = slice(0, rows)
        keys, steps, lengths = self.keys[view], self.steps[view], self.prompt_lengths[view]
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
        prompts, prompt_width = self.size.prompts + 1, self.size.longest_prompt
        if tight:
            prompts, prompt_width = self.shelf.used, self.shelf.width
        level = int(steps[0]) if tight and bool((steps == steps[0]).all()) else None
        self.cache.see(prompts, prompt_width, self.group[view], self.place[view], width, steps, level)
        of_prompt, of_response = self.columns[:prompt_width], self.columns[:width]
        positions = (lengths + steps.clamp(max=self.limit - 1))[:, None]  # the model may have no more than those
        allowed = torch.cat([of_prompt < lengths[:, None], of_response <= steps[:, None]], 1)
        key_positions = torch.cat([of_prompt.expand(rows, -1), lengths[:, None] + of_response], 1)
        hidden = self.policy.hidden(embeds[:, None], allowed[:, None], positions, self.cache, key_positions)[:, 0]
        self.hidden[view] = torch.where(go[:, None], hidden, self.hidden[view])
        steps += go
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

    def expect(self, groups: dict[Prompt, int]) -> None:
        """All slots are free, and so many requests of each prompt will come."""
        if self.cache.keys:  # an interrupted call may have left something
            self._wipe(torch.arange(self.size.slots, device=self.policy.device), self.broken)
        for flags in (self.broken, self.waiting, self.active):
            flags.zero_()
        self.owners = [None] * self.size.slots
        self.shelf = Shelf(self.size.prompts, self.size.members, groups)
        self.group[:], self.place[:] = self.size.prompts, 0  # a prompt slot that no prompt has

    @property
    def occupied(self) -> int:
        """Slots that have an owner."""
        return sum(owner is not None for owner in self.owners)

    @property
    def top(self) -> int:
        """One more than the last slot that has an owner."""
        return max((slot + 1 for slot, owner in enumerate(self.owners) if owner is not None), default=0)

    def admit(self, waiting: deque[Arrival], at_once: int) -> None:
        """Give the requests at the head of the queue the free slots; prompts are read `at_once`, or fewer."""
        while waiting and self.occupied < self.size.slots:
            seated = self._seat(waiting)
            if seated:
                self._place(seated)
            elif not self._read(at_once):
                break  # until a row of the next one's prompt ends, or one whose prompt nobody needs any more

    def _read(self, at_once: int) -> bool:
        """Prefill the next prompts, where a prompt slot is free."""
        prompts = self.shelf.take_next(at_once)
        if prompts:
            slots = torch.tensor(list(prompts), device=self.policy.device)
            prefilled = prefill(self.policy, list(prompts.values()))
            self.cache.hold(prefilled.cache, slots)
            self.prompt_hidden[slots] = prefilled.hidden
        return bool(prompts)

    def _seat(self, waiting: deque[Arrival]) -> dict[int, Owner]:
        """Owners for free slots, by slot."""
        seated: dict[int, Owner] = {}
        for slot, owner in enumerate(self.owners):
            if owner is None and waiting and (seat := self.shelf.seat(waiting[0].prompt)):
                arrival = waiting.popleft()
                seated[slot] = self.owners[slot] = Owner(arrival.number, arrival.request, *seat)
        return seated

    def _place(self, seated: dict[int, Owner]) -> None:
        """Set the tensors of slots that have new owners."""
        taken, owners = list(seated), list(seated.values())
        device = self.policy.device
        slots = torch.tensor(taken, device=device)
        requests = [owner.request for owner in owners]
        self.group[slots] = group = torch.tensor([owner.prompt_slot for owner in owners], device=device)
        self.place[slots] = torch.tensor([owner.place for owner in owners], device=device)
        self.hidden[slots] = self.prompt_hidden[group]
        self.prompt_lengths[slots] = torch.tensor([len(r.prompt) for r in requests], device=device)
        self.keys[slots] = torch.tensor([r.key for r in requests], device=device)
        self.in_chain[slots] = torch.tensor([r.latent for r in requests], device=device)
        self.noise_scale[slots] = torch.tensor([float(r.noise_scale) for r in requests], device=device)
        self.temperature[slots] = torch.tensor([float(r.temperature) for r in requests], device=device)
        self.steps[slots] = 0
        self.active[slots] = True
        for flags in (self.ended, self.waiting, self.broken):
            flags[slots] = False

    def look(self, rows: int) -> tuple[list[int], bool, int]:
        """Slots whose rows are done, whether a row waits for the whole vocabulary, and the longest response."""
        view = slice(0, rows)
        active, waiting, steps = torch.stack(
            [self.active[view].long(), self.waiting[view].long(), self.steps[view]]
        ).tolist()
        done = [slot for slot in range(rows) if self.owners[slot] is not None and not active[slot]]
        alive = [slot for slot in range(rows) if active[slot]]
        return done, any(waiting[slot] for slot in alive), max((steps[slot] for slot in alive), default=0)

    def gained(self, heard: dict[int, int]) -> Iterator[tuple[int, Part]]:
        """What each row has gained, by the number of its request.

        `heard`: how many positions of it are known already, by number; brought up to date.
        """
        rows = [(slot, owner.number) for slot, owner in enumerate(self.owners) if owner is not None]
        slots = torch.tensor([slot for slot, _ in rows], device=self.policy.device)
        begins, ends = [heard.get(number, 0) for _, number in rows], self.steps[slots].tolist()
        most = max(0, *(end - begin for begin, end in zip(begins, ends, strict=True)))
        at = torch.tensor(begins, device=slots.device)[:, None] + torch.arange(most, device=slots.device)
        at = at.clamp(max=self.limit)  # of rows that gained less
        record = [tensor[slots[:, None], at].cpu() for tensor in (self.tokens, self.indices, self.scores)]
        for place, (_, number) in enumerate(rows):
            if (count := ends[place] - begins[place]) > 0:
                heard[number] = ends[place]
                yield number, Part(*(tensor[place, :count] for tensor in record))

    def take(self, done: Sequence[int]) -> list[tuple[int, Rollout]]:
        """Rollouts of these slots, which become free, with the numbers of their requests."""
        slots = torch.tensor(done, device=self.policy.device)
        steps, ended, broken = (tensor[slots].cpu() for tensor in (self.steps, self.ended, self.broken))
        lengths, longest = steps.tolist(), int(steps.max())
        inside = torch.arange(longest) < steps[:, None]
        record = (self.tokens, self.indices, self.scores, self.logprob)
        # One piece of memory for all of them, cut at their ends: thousands of small copies would cost more than a step.
        tokens, indices, scores, logprob = (tensor[slots, :longest].cpu()[inside].split(lengths) for tensor in record)
        self._wipe(slots, self.broken[slots])
        self.group[slots], self.place[slots] = self.size.prompts, 0
        out = []
        for place, slot in enumerate(done):
            owner = self.owners[slot]
            assert owner is not None
            rollout = Rollout(
                owner.request.prompt,
                tokens[place],
                indices[place],
                scores[place],
                logprob[place],
                valid=bool(ended[place]),
                broken=bool(broken[place]),
            )
            out.append((owner.number, rollout))
            self.owners[slot] = None
            self.shelf.leave(owner.prompt_slot, owner.place)
        return out

    def _wipe(self, slots: Tensor, broken: Tensor) -> None:
        """Clean those of the slots whose rows came to a NaN: masked out it would still reach their next owners."""
        spoilt = slots[broken | ~self.hidden[slots].isfinite().all(-1)]
        if len(spoilt):
            self.cache.wipe(spoilt)
            self.hidden[spoilt] = 0

    def compact(self) -> None:
        """Move the last rows into the gaps, so that the rows in flight are the first ones."""
        count = self.occupied
        movers = [slot for slot in range(count, self.size.slots) if self.owners[slot] is not None]
        if not movers:
            return
        gaps = [slot for slot in range(count) if self.owners[slot] is None]
        source = torch.tensor(movers, device=self.policy.device)
        target = torch.tensor(gaps, device=self.policy.device)
        self.cache.move(source, target, int(self.steps[source].max()))
        for tensor in self._per_row:
            tensor[target] = tensor[source]
        self.active[source] = False
        self.group[source], self.place[source] = self.size.prompts, 0
        for gap, mover in zip(gaps, movers, strict=True):
            self.owners[gap], self.owners[mover] = self.owners[mover], None
