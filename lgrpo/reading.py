"""A rollout in words: what the model held in superposition, step by step."""

from lgrpo import superposition
from lgrpo.policy import Policy
from lgrpo.rollout import LATENT, Rollout


def latent_steps(policy: Policy, rollout: Rollout, tau: float) -> list[list[tuple[str, float]]]:
    """Words and weights of each latent step, heaviest first: K pairs a step."""
    latent = rollout.tokens == LATENT
    weights = superposition.weights_of(rollout.scores[latent], tau)
    return [
        [(_word(policy, int(token)), float(weight)) for token, weight in zip(row, row_weights, strict=True)]
        for row, row_weights in zip(rollout.indices[latent], weights, strict=True)
    ]


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
