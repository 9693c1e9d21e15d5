"""From logits to actions: what every row in flight does next (docs/method.md, 1 and 2).

Pure functions of tensors over N rows, latent and explicit ones together. Nothing here waits for the device unless
`whole` is asked for, so that a step can be captured in a CUDA graph.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lgrpo import noise, superposition
from lgrpo.rollout import LATENT
from lgrpo.superposition import LatentSettings

BLOCK = 128  # tokens a block in `best`


@dataclass(frozen=True)
class TextSettings:
    """How explicit tokens are sampled; the published values (docs/method.md, 2)."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 30


class Rows(NamedTuple):
    """What an action depends on besides the logits, one entry a row [N]."""

    keys: Tensor  # int64, see noise.row_key
    steps: Tensor  # int64, responses so far
    in_chain: Tensor  # bool: the latent chain has not ended
    noise_scale: Tensor  # float32
    temperature: Tensor  # float32, of explicit tokens; 0 is the most probable one


class Action(NamedTuple):
    """What each row does."""

    tokens: Tensor  # int64 [N], LATENT where a superposition
    indices: Tensor  # int64 [N, K], 0 where it is none
    scores: Tensor  # float [N, K], 0 where it is none
    logprob: Tensor  # float [N]: surrogate log-probability, or the token's
    proven: Tensor  # bool [N]: the short list was enough
    finite: Tensor  # bool [N]: no logit is NaN or infinite upwards; where one is, the rest means nothing


def act(
    logits: Tensor, rows: Rows, end_id: int, latent: LatentSettings, text: TextSettings, chains: bool, whole: bool
) -> Action:
    """The next action of each row.

    logits [N, V], at least float32. `chains`: some rows may still be in their chain. `whole`: where the short list is
    not proven to hold the answer, look at the whole vocabulary; else such a row is only marked.
    """
    count, vocabulary = logits.shape
    few = min(latent.shortlist, 8 * latent.k)  # that many for each component hold the answer nearly always
    wanted = max(few, latent.k, text.top_k) if chains else text.top_k
    values, candidates = best(logits, min(vocabulary, wanted))
    heat = text.temperature or 1.0  # at 0 nothing is drawn: the log-probability is the model's own
    normaliser = _logsumexp(logits, values, heat)
    finite = normaliser.isfinite()

    def of_token(tokens: Tensor) -> Tensor:
        return (logits.gather(1, tokens[:, None]) / heat)[:, 0] - normaliser

    draw = noise.gumbel(rows.keys, rows.steps, candidates)  # for a superposition or a token: a row needs one of them
    sampled = _sample(values, candidates, draw, rows.temperature, text)
    if not chains:
        blank = sampled.new_zeros(count, latent.k)
        return Action(sampled, blank, blank.to(logits.dtype), of_token(sampled), torch.ones_like(finite), finite)

    log_probs = values - _logsumexp(logits, values)[:, None]
    choice = superposition.perturb(log_probs, candidates, draw, rows.noise_scale, latent, vocabulary)
    choice = choice._replace(proven=choice.proven | ~rows.in_chain | ~finite)
    if whole:
        noisy = rows.keys, rows.steps, rows.noise_scale
        superposition.complete(choice, lambda some: logits[some].log_softmax(-1), *noisy, latent, vocabulary)
    ends = ~finite | (candidates[:, 0] == end_id) | (choice.indices[:, 0] == end_id)
    is_latent = rows.in_chain & ~ends
    hard = torch.where(rows.in_chain, end_id, sampled)
    surrogate = superposition.step_logprob(choice.log_probs, choice.scores, latent)
    return Action(
        torch.where(is_latent, LATENT, hard),
        torch.where(is_latent[:, None], choice.indices, 0),
        torch.where(is_latent[:, None], choice.scores, 0.0),
        torch.where(is_latent, surrogate, of_token(hard)),
        choice.proven,
        finite,
    )


def _logsumexp(logits: Tensor, values: Tensor, temperature: float = 1.0) -> Tensor:
    """Of logits [N, V] / temperature, whose largest are `values` [N, M], falling: [N].

    By powers of two, which a CPU takes in half the time of powers of e.
    """
    most = values[:, :1]
    powers = (logits - most).mul_(1 / (temperature * math.log(2))).exp2_()
    return powers.sum(-1).log_() + most[:, 0] / temperature


def _sample(values: Tensor, candidates: Tensor, draw: Tensor, temperature: Tensor, text: TextSettings) -> Tensor:
    """Explicit tokens int64 [N]: temperature, top-k, top-p, then the Gumbel-max trick on counter noise.

    values [N, M] are the best logits, falling, of the tokens `candidates` [N, M], and `draw` [N, M] their noise.
    """
    values, candidates, draw = values[:, : text.top_k], candidates[:, : text.top_k], draw[:, : text.top_k]
    # Temperature 0 is the most probable token: no noise, and any finite temperature for the nucleus.
    scaled = values / torch.where(temperature > 0, temperature, 1.0)[:, None]
    probabilities = scaled.softmax(-1)
    outside = superposition.running_sum(probabilities) - probabilities >= text.top_p
    noisy = scaled.masked_fill(outside, -torch.inf) + draw * (temperature > 0)[:, None]
    choice = noisy.argmax(-1, keepdim=True)
    return candidates.gather(1, choice)[:, 0]


def best(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest logits [N, count] and their tokens, falling: what `topk` gives, sooner for large V.

    The vocabulary is cut into blocks. The `count` best tokens lie in the `count` blocks with the largest maxima, so one
    pass for the maxima leaves a fraction to search.
    """
    rows, vocabulary = logits.shape
    blocks = vocabulary // BLOCK
    if blocks < 4 * count:
        return logits.topk(count, dim=-1)
    body = logits[:, : blocks * BLOCK].view(rows, blocks, BLOCK)
    chosen = body.amax(-1).topk(count, dim=-1).indices  # [N, count]
    inside = body.gather(1, chosen[..., None].expand(-1, -1, BLOCK)).flatten(1)
    rest = logits[:, blocks * BLOCK :]
    values, place = torch.cat([inside, rest], 1).topk(count, dim=-1)
    searched = count * BLOCK
    block = chosen.gather(1, (place // BLOCK).clamp(max=count - 1))
    tokens = torch.where(place < searched, block * BLOCK + place % BLOCK, blocks * BLOCK + place - searched)
    return values, tokens
