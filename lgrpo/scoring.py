"""Log-probabilities of recorded rollouts under the policy being trained (docs/method.md, 3 and 5).

Rollouts of one prompt are packed behind a single copy of it: each response sees the prompt and itself, no
other response, so the numbers are those of separate rows for a fraction of the work. The output head is applied
at response positions only, in chunks whose logits are recomputed in the backward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lgrpo import superposition
from lgrpo.chunks import by_chunks, embedding_table
from lgrpo.policy import Policy
from lgrpo.rollout import LATENT, Rollout
from lgrpo.superposition import LatentSettings

COLUMNS = 1024  # positions of a packed row: attention costs their square, so long responses stay apart


@dataclass(frozen=True)
class Batch:
    """N rollouts packed into B rows of L columns, with T the longest response. On the policy's device.

    Their input embeddings, some thirty times as much, are rebuilt when they are needed (`inputs_of`).
    """

    filled: int  # of the B * L columns: those that are no padding
    tau: float
    ids: Tensor  # int64 [B, L], LATENT where a superposition
    source: Tensor  # int64 [B, L]: flat (rollout, step) of N * T whose action a response column holds
    segment: Tensor  # int64 [B, L]: 0 prompt, 1.. response, -1 padding
    positions: Tensor  # int64 [B, L]
    row: Tensor  # int64 [N, T]: row and column whose hidden state predicts this response position
    column: Tensor  # int64 [N, T]
    mask: Tensor  # bool [N, T]: a response position
    tokens: Tensor  # int64 [N, T], LATENT where a superposition
    indices: Tensor  # int64 [N, T, K]
    scores: Tensor  # float [N, T, K]

    @property
    def latent(self) -> Tensor:
        return (self.tokens == LATENT) & self.mask


def pack(rollouts: Sequence[Rollout], columns: int) -> list[list[int]]:
    """Rows of at most `columns` positions where possible: lists of rollout numbers that share a prompt.

    Rollouts of one prompt must follow one another.
    """
    rows: list[list[int]] = []
    used, prompt = 0, None
    for number, rollout in enumerate(rollouts):
        if rollout.prompt != prompt or used + rollout.length - 1 > columns:
            rows.append([])
            used, prompt = len(rollout.prompt), rollout.prompt
        rows[-1].append(number)
        used += rollout.length - 1  # the last position predicts nothing
    return rows


def collate(policy: Policy, rollouts: Sequence[Rollout], tau: float, columns: int = COLUMNS) -> Batch:
    """Pack rollouts into rows of at most `columns` where possible, and move them to the device."""
    rows = pack(rollouts, columns)
    lengths = [r.length for r in rollouts]
    width = max(len(rollouts[row[0]].prompt) + sum(lengths[n] - 1 for n in row) for row in rows)
    if policy.device.type == "cuda":
        width = -(-width // 8) * 8  # else each layer copies the mask to such a width, and keeps the copy
    longest, k = max(lengths), rollouts[0].indices.shape[-1]
    ids = torch.full((len(rows), width), policy.pad_id)
    segment = torch.full((len(rows), width), -1)
    positions = torch.zeros(len(rows), width, dtype=torch.int64)
    source = torch.zeros(len(rows), width, dtype=torch.int64)
    at_row = torch.zeros(len(rollouts), longest, dtype=torch.int64)
    at_column = torch.zeros(len(rollouts), longest, dtype=torch.int64)
    for row, numbers in enumerate(rows):
        prompt = rollouts[numbers[0]].prompt
        start = len(prompt)
        ids[row, :start] = torch.tensor(prompt)
        segment[row, :start] = 0
        positions[row, :start] = torch.arange(start)
        for order, number in enumerate(numbers, 1):
            inputs = lengths[number] - 1
            here = slice(start, start + inputs)
            ids[row, here] = rollouts[number].tokens[:-1]
            source[row, here] = number * longest + torch.arange(inputs)
            segment[row, here] = order
            positions[row, here] = len(prompt) + torch.arange(inputs)
            at_row[number] = row
            at_column[number, 0] = len(prompt) - 1
            at_column[number, 1 : inputs + 1] = torch.arange(start, start + inputs)
            start += inputs
    indices = torch.zeros(len(rollouts), longest, k, dtype=torch.int64)
    scores = torch.zeros(len(rollouts), longest, k, dtype=rollouts[0].scores.dtype)
    tokens = torch.zeros(len(rollouts), longest, dtype=torch.int64)
    mask = torch.zeros(len(rollouts), longest, dtype=torch.bool)
    for number, rollout in enumerate(rollouts):
        length = rollout.length
        indices[number, :length], scores[number, :length] = rollout.indices, rollout.scores
        tokens[number, :length], mask[number, :length] = rollout.tokens, True

    filled = int((segment >= 0).sum())
    tensors = (ids, source, segment, positions, at_row, at_column, mask, tokens, indices, scores)
    return Batch(filled, tau, *(tensor.to(policy.device) for tensor in tensors))


@torch.no_grad()
def inputs_of(policy: Policy, batch: Batch) -> Tensor:
    """Input embeddings [B, L, D], those of latent columns rebuilt from the recorded actions."""
    embeds: Tensor = policy.embedding(batch.ids.clamp(min=0))
    latent = batch.ids == LATENT
    flat = batch.source[latent]
    if not len(flat):
        return embeds
    weights = superposition.weights_of(batch.scores.flatten(0, 1)[flat], batch.tau)
    return embeds.masked_scatter(
        latent[..., None], superposition.embed(batch.indices.flatten(0, 1)[flat], weights, policy.embedding)
    )


def states_of(policy: Policy, batch: Batch) -> Tensor:
    """Hidden states [R, D] that predict the R response positions of all rollouts, in order."""
    order = torch.arange(batch.segment.shape[1], device=batch.segment.device)
    key, query = batch.segment[:, None, :], batch.segment[:, :, None]
    allowed = (order[None, :] <= order[:, None]) & ((key == 0) | (key == query))
    hidden = policy.hidden(inputs_of(policy, batch), allowed, batch.positions)
    return hidden[batch.row[batch.mask], batch.column[batch.mask]]


def component_logprobs(policy: Policy, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """What the policy gives to the recorded actions, in float32.

    Returns (components [N, T, K]: log p of the recorded indices at temperature 1; hard [N, T]: log p of the
    token at the explicit `temperature`). Positions outside the mask, and the form that does not apply, are 0.
    """
    states = states_of(policy, batch)
    tokens, indices = batch.tokens[batch.mask], batch.indices[batch.mask]

    def chunk(states: Tensor, tokens: Tensor, indices: Tensor) -> Tensor:
        logits, latent = policy.head(states), (tokens == LATENT)[:, None]
        # Each position has one form, so one temperature and one normalisation do: half the logits alive at a time.
        logits = logits / torch.ones_like(logits[:, :1]).masked_fill(~latent, temperature)
        wanted = torch.cat([indices, tokens.clamp(min=0)[:, None]], 1)
        log_probs = logits.gather(1, wanted) - logits.logsumexp(-1, keepdim=True)
        return torch.cat([log_probs[:, :-1] * latent, log_probs[:, -1:] * ~latent], 1)

    scored = by_chunks(chunk, len(embedding_table(policy)), states, tokens, indices)
    components, hard = scored[:, :-1], scored[:, -1]
    out_components = components.new_zeros(*batch.mask.shape, indices.shape[-1])
    out_hard = hard.new_zeros(batch.mask.shape)
    where = batch.mask.nonzero(as_tuple=True)
    return out_components.index_put(where, components), out_hard.index_put(where, hard)


def logprob(
    components: Tensor, hard: Tensor, batch: Batch, settings: LatentSettings, advantage: Tensor | None = None
) -> Tensor:
    """Log-probability [N, T] of each response position: the surrogate of a latent step, else the token's own.

    advantage [N, T] turns the straight-through gradient on.
    """
    scores = torch.where(batch.latent[..., None], batch.scores.to(components.dtype), 0.0)
    surrogate = superposition.step_logprob(components, scores, settings, advantage)
    return torch.where(batch.latent, surrogate, hard)
