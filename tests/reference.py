"""The method in float64 and plain Python loops, written from docs/method.md and not from the implementation.

Every function takes and gives lists and floats, so that a reader can check it against the text line by line.
`generate` and `rescore` alone touch a model: its own forward pass over the whole sequence, no cache, no mask.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from lgrpo import noise

LATENT = -1
INF = float("inf")


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = math.log(sum(math.exp(z - top) for z in logits)) + top
    return [z - total for z in logits]


def softmax(values: list[float]) -> list[float]:
    return [math.exp(x) for x in log_softmax(values)]


def descending(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda i: -values[i])


def mixture(logits: list[float], k: int) -> tuple[list[int], list[float]]:
    """Section 1: top K, softmax over the K alone."""
    indices = descending(logits)[:k]
    return indices, softmax([logits[i] for i in indices])


def nucleus(log_p: list[float], top_p: float) -> list[int]:
    """Tokens whose preceding cumulative probability is below top_p, the most probable first."""
    kept, before = [], 0.0
    for i in descending(log_p):
        if before >= top_p:
            break
        kept.append(i)
        before += math.exp(log_p[i])
    return kept


@dataclass
class Explored:
    hard: bool
    indices: list[int]
    scores: list[float]


def explore(
    logits: list[float],
    gumbel: list[float],
    end_id: int,
    k: int,
    tau: float = 1.0,
    noise_scale: float = 1.0,
    one_sided: bool = True,
    top_p: float = 0.95,
) -> Explored:
    """Section 2, steps 1 to 6, over the whole vocabulary. `gumbel`: unclipped noise of each token."""
    log_p = log_softmax(logits)
    order = descending(log_p)
    if order[0] == end_id:
        return Explored(True, [], [])
    if noise_scale == 0:  # section 1's mixture, recorded so that softmax(scores / tau) is it
        return Explored(False, order[:k], [tau * log_p[i] for i in order[:k]])
    candidates = set(nucleus(log_p, top_p)) | set(order[:k])
    score = [-INF] * len(log_p)
    for i in candidates:
        g = min(max(gumbel[i], -1.5), 3.0)
        if one_sided:
            g += 1.5
        score[i] = log_p[i] + noise_scale * g
    best = descending(score)[:k]
    if best[0] == end_id:
        return Explored(True, [], [])
    return Explored(False, best, [score[i] for i in best])


def surrogate(log_probs: list[float], scores: list[float], weights: list[float] | None = None) -> float:
    """Section 3's value."""
    weights = weights or [1 / len(scores)] * len(scores)
    total = 0.0
    for log_p, score, weight in zip(log_probs, scores, weights, strict=True):
        margin = score - log_p
        total += weight * (-margin - math.exp(-margin))
    return total


def surrogate_gradient(log_probs: list[float], scores: list[float], advantage: float) -> list[float]:
    """Section 3's gradient with respect to each log p, conditional straight-through included."""
    out = []
    for log_p, score in zip(log_probs, scores, strict=True):
        margin = score - log_p
        turned = advantage < 0 and margin < 0
        out.append((1 - math.exp(margin if turned else -margin)) / len(scores))
    return out


def group_advantages(rewards: list[float], valid: list[bool], group: list[int], keep_invalid: bool) -> list[float]:
    """Section 4."""
    out = []
    for reward, ok, label in zip(rewards, valid, group, strict=True):
        if not ok:
            out.append(0.0)
            continue
        counted = [r for r, v, g in zip(rewards, valid, group, strict=True) if g == label and (v or keep_invalid)]
        mean, std = 0.0, 1.0
        if len(counted) > 1:
            mean = sum(counted) / len(counted)
            std = math.sqrt(sum((r - mean) ** 2 for r in counted) / (len(counted) - 1))
        out.append((reward - mean) / (std + 1e-6))
    return out


def first_token_winners(advantages: list[float], mean_logprob: list[float], group: list[int]) -> list[bool]:
    """Section 4, 'optimal correct-path first-token selection'."""
    out = []
    for i, advantage in enumerate(advantages):
        rivals = [j for j in range(len(group)) if group[j] == group[i] and advantages[j] > 0]
        out.append(advantage <= 0 or i == max(rivals, key=lambda j: mean_logprob[j]))
    return out


def ppo_loss(
    logprob: list[list[float]],
    old: list[list[float]],
    advantage: list[list[float]],
    mask: list[list[bool]],
    clip: float = 0.2,
    dual_clip: float = 3.0,
) -> float:
    """Section 5."""
    total, count = 0.0, 0
    for i, row in enumerate(mask):
        for t, counted in enumerate(row):
            if not counted:
                continue
            ratio, a = math.exp(logprob[i][t] - old[i][t]), advantage[i][t]
            objective = min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
            if a < 0:
                objective = max(objective, dual_clip * a)
            total, count = total - objective, count + 1
    return total / count


def kl(logprob: float, ref: float) -> float:
    """Section 5's k3 estimator."""
    difference = min(ref - logprob, 700.0)
    return min(max(math.exp(difference) - difference - 1, -10.0), 10.0)


def explicit_distribution(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Probability of each token: temperature, then the top k, then the nucleus of what is left."""
    kept = descending(logits)[:top_k]
    p = softmax([logits[i] / temperature for i in kept])
    inside = nucleus([math.log(x) for x in p], top_p)
    total = sum(p[j] for j in inside)
    out = [0.0] * len(logits)
    for j in inside:
        out[kept[j]] = p[j] / total
    return out


def splitmix_uniform(key: int, step: int, token: int) -> float:
    """The counter noise in Python's unbounded integers."""
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    row = mix((key + step * 0x9E3779B97F4A7C15) & mask)
    return ((mix((row + token * 0xD1B54A32D192ED03) & mask) >> 41) + 0.5) / 2**23


@dataclass
class Response:
    tokens: list[int]
    indices: list[list[int]]  # empty at hard positions
    scores: list[list[float]]
    logprob: list[float]
    valid: bool


def generate(policy: Any, request: Any, latent: Any, text: Any, max_response: int) -> Response:
    """One rollout by the model's own forward over the whole sequence at every step."""
    model, table = policy.model, policy.model.get_input_embeddings()
    embeds = table(torch.tensor([list(request.prompt)]))
    in_chain, out = request.latent, Response([], [], [], [], False)
    for step in range(max_response):
        logits = model(inputs_embeds=embeds, use_cache=False).logits[0, -1].double().tolist()
        where = torch.tensor([request.key]), torch.tensor([step]), torch.arange(len(logits))[None]
        raw = noise.gumbel(*where)[0].tolist()
        token, explored = LATENT, Explored(True, [], [])
        if in_chain:
            explored = explore(
                logits, raw, policy.end_id, latent.k, latent.tau, request.noise_scale, latent.one_sided, latent.top_p
            )
            if explored.hard:
                token, in_chain = policy.end_id, False
        elif request.temperature == 0:
            token = descending(logits)[0]
        else:
            p = explicit_distribution(logits, request.temperature, text.top_k, text.top_p)
            token = descending([math.log(x) + g if x else -INF for x, g in zip(p, raw, strict=True)])[0]
        if token == LATENT:
            weights = torch.tensor(softmax([s / latent.tau for s in explored.scores]), dtype=embeds.dtype)
            following = (weights[:, None] * table(torch.tensor(explored.indices))).sum(0)
            log_p = log_softmax(logits)
            scaled = [log_p[i] / latent.noise_scale for i in explored.indices]
            scores = [score / latent.noise_scale for score in explored.scores]
            out.logprob.append(surrogate(scaled, scores, weights.tolist() if latent.weighted else None))
        else:
            following = table(torch.tensor(token))
            out.logprob.append(log_softmax([z / text.temperature for z in logits])[token])
        out.tokens.append(token)
        out.indices.append(explored.indices)
        out.scores.append(explored.scores)
        embeds = torch.cat([embeds, following[None, None]], 1)
        if token in policy.eos_ids:
            out.valid = True
            break
    return out


def rescore(policy: Any, rollout: Any, tau: float, temperature: float) -> list[torch.Tensor]:
    """Log-probability of each position of a rollout, with a graph: one plain forward over prompt and response."""
    table = policy.model.get_input_embeddings()
    embeds = list(table(torch.tensor(list(rollout.prompt))))
    tokens, indices, scores = (x.tolist() for x in (rollout.tokens, rollout.indices, rollout.scores))
    for t, token in enumerate(tokens):
        if token == LATENT:
            weights = torch.tensor(softmax([s / tau for s in scores[t]]), dtype=embeds[0].dtype)
            embeds.append((weights[:, None] * table(torch.tensor(indices[t]))).sum(0))
        else:
            embeds.append(table(torch.tensor(token)))
    logits = policy.model(inputs_embeds=torch.stack(embeds)[None].detach(), use_cache=False).logits[0]
    out = []
    for t, token in enumerate(tokens):
        z = logits[len(rollout.prompt) + t - 1]
        if token == LATENT:
            margin = torch.tensor(scores[t], dtype=z.dtype) - z.log_softmax(-1)[indices[t]]
            out.append((-margin - torch.exp(-margin)).mean())
        else:
            out.append((z / temperature).log_softmax(-1)[token])
    return out
