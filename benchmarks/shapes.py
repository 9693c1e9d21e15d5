"""Models of a given shape with random weights, for speed alone, and what the hardware could do at best."""

import copy
from dataclasses import dataclass

import torch
import transformers
from side_by_side import timed
from torch import Tensor

from lgrpo import tiny
from lgrpo.policy import Card, Policy
from lgrpo.policy.cache import bytes_per_column

NEVER = -2  # no token has this id, and it is not lgrpo.rollout.LATENT
LOWEST = -1e4  # a logit
SHARPNESS = 12.0  # spread of the random logits: a trained model's nucleus holds a few tokens, not the whole vocabulary


@dataclass(frozen=True)
class Shape:
    """What decides the cost of a model, and the batch it is measured with."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    groups: int  # prompts
    group: int  # rollouts a prompt
    prompt: int  # positions
    response: int
    recipe: str
    room: float  # bytes it is to get by with
    tied: bool = True  # the head is the embedding table


SHAPES = {
    "tiny-random": Shape(1024, 64, 128, 2, 4, 2, 4, 4, 24, 16, "low", 4e9),
    "llama-3.2-1b": Shape(128_256, 2048, 8192, 16, 32, 8, 64, 8, 192, 128, "low", 20e9),
    "qwen2.5-7b": Shape(152_064, 3584, 18_944, 28, 28, 4, 32, 8, 1024, 4096, "high", 80e9, tied=False),
}
# Bytes a second of the memory and dense bf16 operations a second, by data sheet.
PEAKS = {
    "H200": (4.8e12, 989e12), "H100 PCIe": (2.0e12, 756e12), "H100": (3.35e12, 989e12), "A100": (2.04e12, 312e12),
    "L40S": (0.864e12, 362e12), "RTX 4090": (1.01e12, 165e12), "RTX 3090": (0.936e12, 71e12),
}  # fmt: skip


def random_policy(shape: Shape, device: str) -> Policy:
    """Random weights behind the embedded model's tokenizer, which is smaller; nothing is downloaded."""
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
    )
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():  # in the last norm: larger embeddings would make each token its own successor
        table = model.get_output_embeddings().weight
        model.base_model.norm.weight.mul_(SHARPNESS / (shape.hidden**0.5 * float(table.float().std())))
    model.config.eos_token_id = model.generation_config.eos_token_id = None  # generate looks here, too
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tiny.MODEL))
    return Policy(model.eval(), tokenizer, Card("explicit"), "random weights")


def endless(policy: Policy) -> Policy:
    """The same policy in whose responses nothing ends: no token ends the sequence, none the chain."""
    other = copy.copy(policy)
    other.eos_ids, other.end_id = [NEVER], len(policy.embedding.weight) - 1

    def head(hidden: Tensor) -> Tensor:
        logits = policy.head(hidden)
        logits[..., -1] = LOWEST  # what ends a chain never comes first
        return logits

    other.head = head  # type: ignore[method-assign]
    return other


def random_prompts(shape: Shape) -> list[tuple[int, ...]]:
    """One a group, all of the longest length."""
    generator = torch.Generator().manual_seed(0)
    return [
        tuple(torch.randint(shape.vocabulary, (shape.prompt,), generator=generator).tolist())
        for _ in range(shape.groups)
    ]


def peaks(device: str, dtype: torch.dtype) -> tuple[float, float, str]:
    """(bytes a second, operations a second, where they are from): a data sheet, else a copy and a product timed."""
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name()
        for known, (bandwidth, operations) in PEAKS.items():
            if all(word in name for word in known.split()):
                return bandwidth, operations, f"data sheet of {known}"
    source = torch.ones(1 << 26, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    square = torch.ones(1024 if torch.device(device).type == "cpu" else 8192, dtype=dtype, device=device)
    square = square.expand(len(square), -1).contiguous()
    copying = min(timed(device, lambda: target.copy_(source))[1].wall for _ in range(5))
    multiplying = min(timed(device, lambda: square @ square)[1].wall for _ in range(5))
    return 2 * source.numel() * 4 / copying, 2 * len(square) ** 3 / multiplying, "measured here"


def decode_step_bytes(policy: Policy, rows: int, prompts: int, prompt: int, response: int) -> float:
    """What a decode step must read, on average over the response: all weights, and keys and values, once each.

    `prompts`: how many a step reads: one a group where it is shared, else one a row.

    The head counts and looking up embeddings does not. Writing, logits and activations are left out.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in policy.model.parameters())
    if not policy.model.config.tie_word_embeddings:
        weights -= policy.embedding.weight.numel() * policy.embedding.weight.element_size()
    return weights + (prompts * prompt + rows * response / 2) * bytes_per_column(policy.model)


def update_operations(policy: Policy, shape: Shape) -> float:
    """Operations that one pass of learning over the batch needs, forward and backward, without any recomputation.

    6 a weight and position in the layers; 4 in the output head, which is frozen, and at response positions alone;
    12 a head dimension and (query, key) pair in attention. A prompt counts once a group, as it is computed once.
    """
    config = policy.model.config
    inputs = shape.response - 1  # the last position predicts nothing
    positions = shape.groups * (shape.prompt + shape.group * inputs)
    pairs = shape.prompt**2 / 2 + shape.group * (inputs * shape.prompt + inputs**2 / 2)
    head = config.vocab_size * config.hidden_size
    layers = policy.parameters - (head if shape.tied else 2 * head)
    attention = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * pairs * shape.groups
    return 6.0 * layers * positions + 4.0 * head * shape.groups * shape.group * shape.response + attention
