"""Whether a model does here what its own forward pass does: tried once, when it is loaded.

Architectures differ in how they tell positions apart, and in what they keep of them. One that passes over the masks and
positions it is given, or carries a state from one to the next beside keys and values, would be trained on rollouts that
it never made.
"""

import torch
from torch import Tensor

from lgrpo import scoring
from lgrpo.engine import EAGER, Engine
from lgrpo.engine.decode import TextSettings
from lgrpo.errors import UserError, first_line
from lgrpo.policy import Policy
from lgrpo.rollout import Request, Rollout
from lgrpo.superposition import LatentSettings

PROMPT, RESPONSE, ROLLOUTS = 16, 6, 2  # positions, positions, of one prompt
GAP = {4: 0.01, 2: 0.25}  # nats, mean, by bytes of a weight: rounding stays far below, what differs was seen above


def check(policy: Policy) -> None:
    """Compare a few rollouts, and their scores in one packed row, with the model's own logits. Raises UserError."""
    kind = policy.model.config.model_type
    try:
        gaps = _gaps(policy)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each that keeps a state of its own fails in its own way
        raise UserError(
            f"{policy.name}: architecture {kind!r} keeps what it has read in a way lgrpo does not support "
            f"({first_line(error)})"
        ) from error
    known = gaps[gaps.isfinite()]
    if len(known) and float(known.mean()) > GAP.get(policy.dtype.itemsize, GAP[4]):
        raise UserError(
            f"{policy.name}: architecture {kind!r} uses positions, masks or its cache in a way lgrpo does not support"
        )


@torch.no_grad()
def _gaps(policy: Policy) -> Tensor:
    """Absolute differences, nats, of each token's log-probability, one rollout after the other: float [sum of T].

    The larger one of two: of the rollout, and of its score in a packed row, each to the model's own.
    """
    prompt = policy.asked("1 + 1?")[-PROMPT:]
    engine = Engine(policy, LatentSettings(k=1), TextSettings(temperature=1.0), RESPONSE, ROLLOUTS)
    engine.pace = EAGER  # graphs pay for longer work
    rollouts = engine.generate([Request(prompt, key, False, temperature=1.0) for key in range(ROLLOUTS)])
    engine.release()
    batch = scoring.collate(policy, rollouts, tau=1.0)
    _, packed = scoring.component_logprobs(policy, batch, temperature=1.0)
    own = torch.cat([_own(policy, rollout) for rollout in rollouts])
    rolled = torch.cat([rollout.logprob for rollout in rollouts])
    return torch.stack([(one.cpu() - own).abs() for one in (rolled, packed[batch.mask])]).amax(0)


def _own(policy: Policy, rollout: Rollout) -> Tensor:
    """Log-probabilities [T] of a response's tokens by the model's own forward pass over all of it."""
    ids = torch.tensor([[*rollout.prompt, *rollout.tokens[:-1].tolist()]], device=policy.device)
    logits = policy.model(input_ids=ids, use_cache=False).logits[0, len(rollout.prompt) - 1 :].float().cpu()
    return logits.log_softmax(-1).gather(1, rollout.tokens[:, None])[:, 0]
