"""Peak memory of one update at Llama-3.2-1B's shape, beside the same update over plain logits.

    python benchmarks/logits_memory.py [--positions 4096] [--layers 1] [--device cuda]

One micro-batch of rollouts, random weights, bfloat16: forward and backward, without the optimizer. "plain" differs in
the head alone: one T x V tensor of logits in float32, log_softmax, gather, as in a trainer that keeps its logits.
Peaks are beyond weights and gradients, on a CPU by accounting (accounting.py), on CUDA by the allocator. The logits'
part is the peak less that of the same update without a head. Layers are alike, so one or two show the head's part as
well as sixteen do. "planned" is what lgrpo/memory says of the same micro-batch.
"""

import argparse
import json
import platform
import time
from typing import Any

import torch
import transformers
from accounting import Accounting, tensors_of
from torch import Tensor

from lgrpo import chunks, scoring
from lgrpo.learner import Learner
from lgrpo.memory import reinforcement as memory
from lgrpo.memory.trial import longest_rows
from lgrpo.plan import Setting, TrainSettings, train_settings
from lgrpo.policy import Policy
from lgrpo.rollout import LATENT

VOCABULARY, HIDDEN = 128_256, 2048


class Bare(Policy):
    """A policy without a tokenizer: nothing here is text."""

    def __init__(self, model: Any):
        self.model, self.embedding, self.pad_id, self._softcap = model, model.get_input_embeddings(), 0, None


def model_of(layers: int, device: str) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=8192, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def plain_logprobs(policy: Policy, batch: scoring.Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """`scoring.component_logprobs` with all logits at once."""
    logits = policy.head(scoring.states_of(policy, batch))  # [R, V] float32
    tokens, indices = batch.tokens[batch.mask], batch.indices[batch.mask]
    latent = (tokens == LATENT)[:, None]
    logits = logits / torch.ones_like(logits[:, :1]).masked_fill(~latent, temperature)
    wanted = torch.cat([indices, tokens.clamp(min=0)[:, None]], 1)
    log_probs = logits.log_softmax(-1).gather(1, wanted)
    return _placed(log_probs[:, :-1] * latent, (log_probs[:, -1:] * ~latent)[:, 0], batch)


def no_logprobs(policy: Policy, batch: scoring.Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """The same without a head: what the layers alone take."""
    states = scoring.states_of(policy, batch).float()
    return _placed(states[:, : batch.indices.shape[-1]] - 20, states[:, 0] - 20, batch)


def _placed(components: Tensor, hard: Tensor, batch: scoring.Batch) -> tuple[Tensor, Tensor]:
    where = batch.mask.nonzero(as_tuple=True)
    return (
        components.new_zeros(*batch.mask.shape, components.shape[-1]).index_put(where, components),
        hard.new_zeros(batch.mask.shape).index_put(where, hard),
    )


def peak_of(policy: Policy, settings: TrainSettings, logprobs: Any) -> tuple[int, float, float]:
    """(bytes beyond weights and gradients, seconds, sum of the gradient's absolute values) of one micro-batch."""
    learner, rollouts, kept = Learner(policy, settings), longest_rows(policy, settings), scoring.component_logprobs
    for parameter in learner.trainable:
        parameter.grad = torch.zeros_like(parameter)
    batch = scoring.collate(policy, rollouts, settings.tau)
    advantage = torch.ones(batch.mask.shape, device=policy.device)
    scoring.component_logprobs = logprobs
    began = time.perf_counter()
    try:
        if policy.device.type == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            learner._backward(batch, advantage, torch.zeros_like(advantage), None, 100)
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before
        else:
            given = [value for value in vars(batch).values() if isinstance(value, Tensor)]
            with Accounting([*tensors_of(policy.model), *given, advantage]) as accounting:
                learner._backward(batch, advantage, torch.zeros_like(advantage), None, 100)
            peak = accounting.peak
    finally:
        scoring.component_logprobs = kept
    size = sum(float(p.grad.double().abs().sum()) for p in learner.trainable if p.grad is not None)
    learner.optimizer.clear()
    return peak, time.perf_counter() - began, size


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--positions", type=int, default=4096, help="of the micro-batch")
    arguments.add_argument("--layers", type=int, default=1)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = arguments.parse_args()
    policy = Bare(model_of(asked.layers, asked.device))
    settings, _ = train_settings(Setting("recipe", "low", ""), k=10, micro_tokens=asked.positions, lr=1e-6)
    responses = sum(rollout.length for rollout in longest_rows(policy, settings))
    sides = {"without a head": no_logprobs, "plain logits": plain_logprobs, "in chunks": scoring.component_logprobs}
    found = {name: peak_of(policy, settings, side) for name, side in sides.items()}
    base = found["without a head"][0]
    ratio = (found["in chunks"][0] - base) / (found["plain logits"][0] - base)
    print(
        f"{asked.positions} positions, {responses} with logits of {VOCABULARY} words, {asked.layers} layers, bfloat16"
    )
    print(f"{'':16}{'peak GB':>10}{'logits GB':>11}{'seconds':>9}{'sum |gradient|':>16}")
    for name, (peak, seconds, size) in found.items():
        print(f"{name:16}{peak / 1e9:10.2f}{(peak - base) / 1e9:11.2f}{seconds:9.1f}{size:16.6g}")
    needed = memory.use(memory.shape_of(policy), settings)
    planned = needed.activations + needed.logits
    print(f"{'planned':16}{planned / 1e9:10.2f}{needed.logits / 1e9:11.2f}")
    print(f"logits of the update: {ratio:.3f} of plain")
    print(
        json.dumps(
            {
                "benchmark": "logits_memory", "device": asked.device, "machine": platform.processor(),
                "torch": torch.__version__, "transformers": transformers.__version__, "positions": asked.positions,
                "responses": responses, "layers": asked.layers, "logits_per_chunk": chunks.LOGITS_PER_CHUNK,
                "peak": {name: peak for name, (peak, _, _) in found.items()},
                "seconds": {name: seconds for name, (_, seconds, _) in found.items()}, "logits_ratio": ratio,
                "planned": planned,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
