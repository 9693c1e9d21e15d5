"""The rollout engine: ids in, rollouts out. It knows no text.

A group's prompt is prefilled once and copied into the slots of its rollouts. Each decode step gives every
row its next action, latent or explicit, and feeds it back; rows that end leave their slot to waiting
requests, so ragged lengths do not cost the longest one. Rows of all kinds share a batch, and none of them
depends on its neighbours: noise is a function of the row's key, its step and the token (noise.py).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from lgrpo import noise, superposition
from lgrpo.cache import SlotCache, rows_that_fit
from lgrpo.policy import Policy
from lgrpo.rollout import LATENT, Request, Rollout
from lgrpo.superposition import LatentSettings

PREFILL = 1 << 15  # prompt positions that go through the model at a time


@dataclass(frozen=True)
class TextSettings:
    """How explicit tokens are sampled; the published values (docs/method.md, 2)."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 30


class Engine:
    """Generates rollouts of at most `max_response` positions, up to `slots` at a time."""

    def __init__(self, policy: Policy, latent: LatentSettings, text: TextSettings, max_response: int, slots: int):
        self.policy, self.latent, self.text = policy, latent, text
        self.max_response, self.slots = max_response, slots
        self.eos = torch.tensor(policy.eos_ids, device=policy.device)

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], on_finish: Callable[[int, Rollout], None] | None = None
    ) -> list[Rollout]:
        """One rollout a request, in the order of the requests. `on_finish(index, rollout)` hears of each as it ends."""
        if not requests:
            return []
        rollouts: dict[int, Rollout] = {}
        longest = max(len(request.prompt) for request in requests)
        capacity = min(self.slots, len(requests), rows_that_fit(self.policy.model, longest + self.max_response))
        state = _Slots(self, capacity, longest)
        waiting = deque(enumerate(requests))
        while waiting or state.rows:
            while waiting and state.rows < state.capacity:
                room = min(len(waiting), state.capacity - state.rows, max(1, PREFILL // longest))
                state.admit([waiting.popleft() for _ in range(room)])
            self._decode_step(state)
            for index, rollout in state.collect():
                rollouts[index] = rollout
                if on_finish:
                    on_finish(index, rollout)
        return [rollouts[index] for index in range(len(requests))]

    def _decode_step(self, state: "_Slots") -> None:
        """Act on each row's last hidden state, record the action, and run the model on it."""
        tokens, step, logprob = self._act(state)
        state.record(tokens, step, logprob)
        hard = self.policy.embedding(tokens.clamp(min=0))
        soft = superposition.embed(
            step.indices, superposition.weights_of(step.scores, self.latent.tau), self.policy.embedding
        )
        embeds = torch.where((tokens == LATENT)[:, None], soft, hard)[:, None]
        state.forward(embeds)

    def _act(self, state: "_Slots") -> tuple[Tensor, superposition.Step, Tensor]:
        """Next action of each row: tokens int64 [N] (LATENT where a superposition), the step, log-probs [N]."""
        rows = slice(0, state.rows)
        logits = self.policy.head(state.hidden[rows])
        log_probs = logits.log_softmax(-1)
        keys, steps, chain = state.keys[rows], state.steps[rows], state.in_chain[rows]
        if bool(chain.any()):
            step = superposition.explore(
                log_probs, keys, steps, state.noise_scale[rows], self.policy.end_id, self.latent
            )
        else:
            step = superposition.Step(*state.no_step(), torch.zeros_like(chain))
        sampled = self._sample(logits, keys, steps, state.temperature[rows])
        tokens = torch.where(step.hard, self.policy.end_id, LATENT)
        tokens = torch.where(chain, tokens, sampled)
        surrogate = superposition.step_logprob(log_probs.gather(1, step.indices), step.scores, self.latent)
        explicit = (logits / self.text.temperature).log_softmax(-1).gather(1, tokens.clamp(min=0)[:, None])[:, 0]
        return tokens, step, torch.where(tokens == LATENT, surrogate, explicit)

    def _sample(self, logits: Tensor, keys: Tensor, steps: Tensor, temperature: Tensor) -> Tensor:
        """Explicit tokens int64 [N]: temperature, top-k, top-p, then the Gumbel-max trick on counter noise."""
        values, tokens = logits.topk(min(self.text.top_k, logits.shape[-1]), dim=-1)
        # Temperature 0 is the most probable token: no noise, and any finite temperature for the nucleus.
        scaled = values / torch.where(temperature > 0, temperature, 1.0)[:, None]
        probabilities = scaled.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= self.text.top_p
        draw = noise.gumbel(keys, steps, tokens) * (temperature > 0)[:, None]
        choice = (scaled.masked_fill(outside, -torch.inf) + draw).argmax(-1, keepdim=True)
        return tokens.gather(1, choice)[:, 0]


class _Slots:
    """State of the rows in flight: the first `rows` of `capacity` slots, all tensors on the device."""

    def __init__(self, engine: Engine, capacity: int, longest_prompt: int):
        policy, k, limit = engine.policy, engine.latent.k, engine.max_response
        self.engine, self.policy, self.capacity, self.limit = engine, policy, capacity, limit
        device = policy.device
        self.cache = SlotCache(capacity, longest_prompt + limit)
        self.rows = 0
        self.owners: list[tuple[int, Request]] = []  # per row: index of its request, and the request

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(capacity, *shape, dtype=dtype, device=device)

        real = torch.float64 if policy.dtype == torch.float64 else torch.float32
        self.hidden = zeros(policy.model.config.get_text_config().hidden_size, dtype=policy.dtype)
        self.keys = zeros(dtype=torch.int64)
        self.steps = zeros(dtype=torch.int64)  # responses so far
        self.lengths = zeros(dtype=torch.int64)  # columns in the cache: prompt and responses
        self.in_chain = zeros(dtype=torch.bool)
        self.ended = zeros(dtype=torch.bool)
        self.noise_scale = zeros(dtype=torch.float32)
        self.temperature = zeros(dtype=torch.float32)
        self.tokens = zeros(limit, dtype=torch.int64)
        self.indices = zeros(limit, k, dtype=torch.int64)
        self.scores = zeros(limit, k, dtype=real)
        self.logprob = zeros(limit, dtype=real)
        self._per_row = (
            self.hidden, self.keys, self.steps, self.lengths, self.in_chain, self.ended, self.noise_scale,
            self.temperature, self.tokens, self.indices, self.scores, self.logprob,
        )  # fmt: skip
        self.longest = 0  # upper bound of `lengths`, known without asking the device

    def no_step(self) -> tuple[Tensor, Tensor]:
        """Indices and scores for a step in which no row is in its chain."""
        return self.indices[: self.rows, 0].clone(), self.scores[: self.rows, 0].clone()

    def admit(self, batch: list[tuple[int, Request]]) -> None:
        """Prefill the distinct prompts of `batch` and give each request a slot."""
        device = self.policy.device
        prompts = {prompt: place for place, prompt in enumerate(dict.fromkeys(r.prompt for _, r in batch))}
        width = max(map(len, prompts))
        ids = torch.tensor([[*p, *[self.policy.pad_id] * (width - len(p))] for p in prompts], device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        positions = torch.arange(width, device=device).expand(len(prompts), -1)
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(len(prompts), -1, -1)
        prefill = DynamicCache()
        hidden = self.policy.hidden(self.policy.embedding(ids), causal, positions, prefill)
        last = hidden[torch.arange(len(prompts), device=device), lengths - 1]

        source = torch.tensor([prompts[request.prompt] for _, request in batch], device=device)
        slots = torch.arange(self.rows, self.rows + len(batch), device=device)
        self.cache.fill(prefill, source, slots)
        self.hidden[slots] = last[source]
        self.lengths[slots] = lengths[source]
        self.steps[slots], self.ended[slots] = 0, False
        requests = [request for _, request in batch]
        self.keys[slots] = torch.tensor([r.key for r in requests], device=device)
        self.in_chain[slots] = torch.tensor([r.latent for r in requests], device=device)
        self.noise_scale[slots] = torch.tensor([r.noise_scale for r in requests], device=device)
        self.temperature[slots] = torch.tensor([r.temperature for r in requests], device=device)
        self.owners += batch
        self.rows += len(batch)
        self.longest = max(self.longest, width)

    def record(self, tokens: Tensor, step: superposition.Step, logprob: Tensor) -> None:
        """Write down each row's action, and mark the rows that end with it."""
        rows = slice(0, self.rows)
        row, at = torch.arange(self.rows, device=tokens.device), self.steps[rows]
        self.tokens[row, at], self.logprob[row, at] = tokens, logprob
        latent = tokens == LATENT  # elsewhere the record is 0: what `step` holds there depends on the other rows
        self.indices[row, at] = torch.where(latent[:, None], step.indices, 0)
        self.scores[row, at] = torch.where(latent[:, None], step.scores, 0.0)
        self.in_chain[rows] &= latent
        self.ended[rows] = torch.isin(tokens, self.engine.eos)
        self.steps[rows] += 1

    def forward(self, embeds: Tensor) -> None:
        """Run the model on one new position a row [N, 1, D]; leaves the hidden states for the next step."""
        positions = self.lengths[: self.rows]
        self.longest += 1
        self.cache.rows, self.cache.width, self.cache.positions = self.rows, self.longest, positions
        allowed = torch.arange(self.longest, device=embeds.device) <= positions[:, None]
        hidden = self.policy.hidden(embeds, allowed[:, None], positions[:, None], self.cache)
        self.hidden[: self.rows] = hidden[:, 0]
        self.lengths[: self.rows] += 1

    def collect(self) -> list[tuple[int, Rollout]]:
        """Take out the rows that ended or reached the limit, and close the gaps they leave."""
        ended = self.ended[: self.rows]
        done = (ended | (self.steps[: self.rows] >= self.limit)).tolist()
        if not any(done):
            return []
        finished = [row for row, over in enumerate(done) if over]
        out = self._rollouts(finished)
        self._compact([row for row, over in enumerate(done) if not over])
        return out

    def _rollouts(self, finished: list[int]) -> list[tuple[int, Rollout]]:
        rows = torch.tensor(finished, device=self.policy.device)
        kept = (self.tokens, self.indices, self.scores, self.logprob, self.steps, self.ended)
        tensors = [tensor[rows].cpu() for tensor in kept]
        out = []
        for place, row in enumerate(finished):
            index, request = self.owners[row]
            length = int(tensors[4][place])
            tokens, indices, scores, logprob = (tensor[place, :length].clone() for tensor in tensors[:4])
            valid = bool(tensors[5][place])
            out.append((index, Rollout(request.prompt, tokens, indices, scores, logprob, valid)))
        return out

    def _compact(self, alive: list[int]) -> None:
        """Move the last rows into the gaps, so that the rows in flight are the first ones."""
        count = len(alive)
        gaps = sorted(set(range(count)) - set(alive))
        movers = [row for row in alive if row >= count]
        if movers:
            source = torch.tensor(movers, device=self.policy.device)
            target = torch.tensor(gaps, device=self.policy.device)
            self.cache.move(source, target)
            for tensor in self._per_row:
                tensor[target] = tensor[source]
            for gap, mover in zip(gaps, movers, strict=True):
                self.owners[gap] = self.owners[mover]
        self.owners = self.owners[:count]
        self.rows = count
        if count:
            self.longest = int(self.lengths[:count].max())
        else:
            self.longest = 0
