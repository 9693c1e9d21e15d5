"""The latent step: a mixture of K vocabulary embeddings in place of a token (docs/method.md, 1 to 3).

Without noise a step is `mixture`; in rollouts `explore` perturbs it with one-sided Gumbel noise and records
the scores, and `surrogate_logprob` is the log-probability that reinforcement acts upon.

One departure from the public release: under a negative advantage and a negative margin the release leaves
the sign of the gradient as it was, which raises the very component it should lower; here it is turned round.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lgrpo import noise

NOISE_LOW, NOISE_HIGH = -1.5, 3.0  # clip of the Gumbel noise, in nats
NOISE_WIDTH = NOISE_HIGH - NOISE_LOW
LONGER = 1024  # tokens looked at next where the short list is not enough: flat steps need hundreds, hardly thousands
WHOLE = 1 << 24  # log-probabilities looked at together where the short list is not enough: 128 MiB of noise


@dataclass(frozen=True)
class LatentSettings:
    """How a latent step explores; the published values (docs/method.md, 2 and 5)."""

    k: int = 10  # tokens in a superposition
    tau: float = 1.0  # temperature of the weights over the scores
    noise_scale: float = 1.0
    one_sided: bool = True  # noise in [0, 4.5] rather than [-1.5, 3]
    top_p: float = 0.95  # nucleus the candidates come from
    weighted: bool = False  # the surrogate: components weighted by the mixture instead of their mean
    shortlist: int = 64  # tokens looked at first, at most; the whole vocabulary where these are not provably enough


class Step(NamedTuple):
    """A latent step's action. `hard` rows emit `end_id` instead; their indices and scores carry no meaning."""

    indices: Tensor  # int64 [N, K], ordered by score
    scores: Tensor  # float32 [N, K]
    hard: Tensor  # bool [N]


def mixture(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The noise-free superposition: top K tokens, softmax over the K alone (docs/method.md, 1).

    logits [..., V] of any float dtype. Returns indices int64 [..., K] and weights float32 [..., K], both
    ordered by weight; float64 logits keep their precision.
    """
    assert 1 <= k <= logits.shape[-1], (k, logits.shape)
    values, indices = logits.topk(k, dim=-1)
    return indices, _float(values).softmax(-1)


def embed(indices: Tensor, weights: Tensor, embedding: Callable[[Tensor], Tensor]) -> Tensor:
    """Mix input embeddings: indices [..., K] and weights [..., K] give [..., D], in the embedding's dtype.

    The sum is taken in float32: in bfloat16 ten small terms lose most of their digits.
    """
    rows = embedding(indices)
    return (weights.unsqueeze(-1).to(_float(rows).dtype) * _float(rows)).sum(-2).to(rows.dtype)


def explore(
    log_probs: Tensor,
    keys: Tensor,
    steps: Tensor,
    noise_scale: Tensor,
    end_id: int,
    settings: LatentSettings,
) -> Step:
    """One latent step under noise, each row with its own key, step and scale (docs/method.md, 2).

    log_probs float32 [N, V]: log-softmax of the logits at temperature 1. keys, steps int64 [N];
    noise_scale float [N], where 0 gives the noise-free mixture, with scores tau * log p so that
    softmax(scores / tau) is it.

    Works on a short list of the most probable tokens; rows for which it is not proven to be enough (`perturb`)
    are done again over the whole vocabulary.
    """
    rows, vocabulary = log_probs.shape
    assert keys.shape == steps.shape == noise_scale.shape == (rows,)
    values, tokens = log_probs.topk(min(vocabulary, max(settings.shortlist, settings.k)), dim=-1)
    choice = perturb(values, tokens, noise.gumbel(keys, steps, tokens), noise_scale, settings, vocabulary)
    complete(choice, log_probs.__getitem__, keys, steps, noise_scale, settings, vocabulary)
    hard = (tokens[:, 0] == end_id) | (choice.indices[:, 0] == end_id)
    return Step(choice.indices, choice.scores, hard)


class Choice(NamedTuple):
    """The K best of a short list under noise, ordered by score."""

    indices: Tensor  # int64 [N, K]
    scores: Tensor  # float [N, K]
    log_probs: Tensor  # float [N, K]: of `indices`, without noise
    proven: Tensor  # bool [N]: no token outside the list can be among them


def perturb(
    values: Tensor,
    tokens: Tensor,
    draw: Tensor,
    noise_scale: Tensor,
    settings: LatentSettings,
    vocabulary: int,
) -> Choice:
    """Candidates, noise and the K best of them (docs/method.md, 2), from the M most probable of V tokens.

    values float [N, M]: their log-probabilities, falling; tokens int64 [N, M]; draw float [N, M]: standard Gumbel
    noise of each; noise_scale float [N].

    A list that holds the nucleus, or reaches further down than noise can lift, is as good as the whole vocabulary:
    noise spans 4.5 * scale, so a token further than that below the K-th best never enters the top K. `proven` says
    where.
    """
    k, size, column = settings.k, values.shape[-1], noise_scale[:, None]
    probabilities = values.exp()
    cumulative = running_sum(probabilities)
    rank = torch.arange(size, device=values.device)
    candidate = (cumulative - probabilities < settings.top_p) | (rank < k)

    draw = draw.clamp(NOISE_LOW, NOISE_HIGH)
    if settings.one_sided:
        draw = draw - NOISE_LOW
    # Without noise the weights are softmax(log p), whatever tau: section 1 knows no tau.
    base = torch.where(column > 0, values, values * settings.tau)
    score = (base + draw * column).masked_fill(~candidate, -torch.inf)
    scores, place = score.topk(k, dim=-1)

    out_of_reach = values[:, -1] < values[:, k - 1] - NOISE_WIDTH * noise_scale
    proven = out_of_reach | (cumulative[:, -1] >= settings.top_p) | (size == vocabulary)
    return Choice(tokens.gather(1, place), scores, values.gather(1, place), proven)


def running_sum(values: Tensor) -> Tensor:
    """Of each row, [N, M]. The only row of a tensor, a GPU would add up in an order that differs from time to time."""
    return values.cumsum(-1) if len(values) != 1 else values.expand(2, -1).cumsum(-1)[:1]


def complete(
    choice: Choice,
    log_probs_of: Callable[[Tensor], Tensor],
    keys: Tensor,
    steps: Tensor,
    noise_scale: Tensor,
    settings: LatentSettings,
    vocabulary: int,
) -> None:
    """Choose again, in place, where the short list is not proven: from a longer one, then from the whole vocabulary.

    log_probs_of(rows int64 [n]) gives their log-probabilities [n, V]; it is asked for a few rows at a time.
    """
    for size in (min(LONGER, vocabulary), vocabulary):
        unproven = (~choice.proven).nonzero()[:, 0]
        if not len(unproven):  # `split` would still make one empty piece of it
            return
        for rows in unproven.split(max(1, WHOLE // vocabulary)):
            values, tokens = log_probs_of(rows).topk(size, dim=-1)
            draw = noise.gumbel(keys[rows], steps[rows], tokens)
            again = perturb(values, tokens, draw, noise_scale[rows], settings, vocabulary)
            for kept, new in zip(choice, again, strict=True):
                kept[rows] = new


def weights_of(scores: Tensor, tau: float) -> Tensor:
    """Mixture weights of recorded scores: softmax(scores / tau), same shape."""
    return (scores / tau).softmax(-1)


def surrogate_logprob(
    log_probs: Tensor, scores: Tensor, advantage: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Surrogate log-probability of a recorded latent step (docs/method.md, 3).

    log_probs [..., K]: log p of the recorded indices under the policy, which gradients flow into; scores
    [..., K] as recorded; advantage [...] or None; weights [..., K], detached, or None for the published mean
    over K. Returns [...].

    The value is always the log-density of a standard Gumbel at the margin. Where advantage < 0 and margin < 0
    the gradient is that of the mirrored margin (conditional straight-through), +(1 - exp(margin)) per
    component, so that a bad sample's components always lose probability.
    """
    assert log_probs.shape == scores.shape, (log_probs.shape, scores.shape)
    margin = scores - log_probs
    density = -margin - torch.exp(-margin)
    if advantage is not None:
        mirror = torch.exp(margin.clamp(max=0.0)) - margin  # d/dlogp = 1 - exp(margin) where margin < 0
        turned = (advantage.unsqueeze(-1) < 0) & (margin < 0)
        density = torch.where(turned, density.detach() + mirror - mirror.detach(), density)
    return density.mean(-1) if weights is None else (weights.detach() * density).sum(-1)


def step_logprob(
    log_probs: Tensor, scores: Tensor, settings: LatentSettings, advantage: Tensor | None = None
) -> Tensor:
    """`surrogate_logprob` in the form the settings ask for; arguments and result as there.

    Margins are measured in units of the noise scale: at the published scale of 1 that changes nothing, and at any
    other the noise is again a standard Gumbel, whose density the surrogate is.
    """
    weights = weights_of(scores, settings.tau) if settings.weighted else None
    scale = settings.noise_scale or 1.0
    return surrogate_logprob(log_probs / scale, scores / scale, advantage, weights)


def _float(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()
