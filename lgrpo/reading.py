"""A rollout in words: what the model held in superposition, step by step."""

from lgrpo import superposition
from lgrpo.policy import Policy
from lgrpo.rollout import LATENT, Rollout

_FEW, _HEAVY = 4, 0.05


def latent_steps(policy: Policy, rollout: Rollout, tau: float) -> list[list[tuple[str, float]]]:
    """Words and weights of each latent step, heaviest first: K pairs a step."""
    latent = rollout.tokens == LATENT
    weights = superposition.weights_of(rollout.scores[latent], tau)
    return [
        [(_word(policy, int(token)), float(weight)) for token, weight in zip(row, row_weights, strict=True)]
        for row, row_weights in zip(rollout.indices[latent], weights, strict=True)
    ]


def heaviest(policy: Policy, rollout: Rollout, tau: float, words: dict[int, str]) -> list[list[tuple[str, float]]]:
    """The words of each latent step that carry it, heaviest first: up to 4 of at least 5 %, the first in any case.

    words: of tokens met before, kept by the caller. A long chain has thousands of steps, and few different tokens.
    """
    latent = rollout.tokens == LATENT
    weights = superposition.weights_of(rollout.scores[latent], tau)
    few = weights.topk(min(_FEW, weights.shape[-1]), dim=-1)
    tokens = rollout.indices[latent].gather(-1, few.indices)
    steps = []
    for row, row_weights in zip(tokens.tolist(), few.values.tolist(), strict=True):
        pairs = [(token, weight) for token, weight in zip(row, row_weights, strict=True) if weight >= _HEAVY]
        for token, _ in pairs or [(row[0], 0.0)]:
            if token not in words:
                words[token] = _word(policy, token)
        steps.append([(words[token], round(weight, 3)) for token, weight in pairs or [(row[0], row_weights[0])]])
    return steps


def answer_text(policy: Policy, rollout: Rollout) -> str:
    """The ordinary tokens after the end marker; of an explicit response, all of them."""
    tokens = rollout.hard_tokens
    if rollout.latent_length and tokens[: len(policy.end_ids)] == policy.end_ids:
        tokens = tokens[len(policy.end_ids) :]
    return policy.decode(tokens).strip()


def readable(policy: Policy, rollout: Rollout, tau: float) -> tuple[str, str]:
    """(chain, answer) on one line each: a step shows its words of at least a fifth of the weight."""
    steps = []
    for pairs in latent_steps(policy, rollout, tau):
        shown = [word for place, (word, weight) in enumerate(pairs) if place == 0 or weight >= 0.2]
        steps.append("+".join(shown))
    return " | ".join(steps), answer_text(policy, rollout)


def _word(policy: Policy, token: int) -> str:
    return str(policy.tokenizer.decode([token])).strip() or repr(policy.tokenizer.decode([token]))
