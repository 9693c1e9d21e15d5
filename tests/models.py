"""Small real things for tests: random-weight models of every supported architecture, and tokenizers to go with them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lgrpo import noise
from lgrpo.engine import Engine
from lgrpo.engine.decode import TextSettings
from lgrpo.policy import Card, Policy
from lgrpo.rollout import Request
from lgrpo.superposition import LatentSettings

CHAT = (
    "{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

LATENTS = LatentSettings(k=3, shortlist=8)
TEXTS = TextSettings(top_k=12, top_p=0.9)
LIMIT = 14  # of a response

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
WINDOW = 5  # of the sliding layers: smaller than every prompt the tests use

# Name of the configuration class, and what departs from SHAPE.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "smollm": ("LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-sliding": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 8,
            "tie_word_embeddings": True,
            "sliding_window": WINDOW,
            "final_logit_softcapping": 3.0,
            "attn_implementation": "eager",  # the only one that applies attn_logit_softcapping
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "tie_word_embeddings": True,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "gpt-neox": ("GPTNeoXConfig", {"num_key_value_heads": None}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {"sliding_window": WINDOW}),
}


def tokenizer(
    think: bool = True, chat_template: str | None = CHAT, pad: bool = True, eos: bool = True
) -> PreTrainedTokenizerFast:
    """Byte-level, any text round-trips: 256 bytes, the turn markers, and `<think>` as one token or as bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if think:
        inner.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>")])
    inner.add_special_tokens([AddedToken(t, special=True) for t in ("<|user|>", "<|assistant|>", "<|end|>", "<|pad|>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|end|>" if eos else None,
        pad_token="<|pad|>" if pad else None,
        chat_template=chat_template,
    )


def small_tokenizer(words: int = 20) -> PreTrainedTokenizerFast:
    """A vocabulary of `words` and four markers, so small that a random model ends its chains and responses soon."""
    names = [f"w{i}" for i in range(words)] + ["<think>", "</think>", "<|end|>", "<|pad|>"]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>")


def model(
    architecture: str = "llama",
    vocabulary: int = 24,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    sharpness: float = 1.0,
    **changes: Any,
) -> Any:
    """A random model. `sharpness` scales weights up, so that logits differ by nats and attention matters."""
    kind_of_config, departures = ARCHITECTURES[architecture]
    settings = {**SHAPE, "vocab_size": vocabulary, **departures, **changes}
    kind = settings.pop("attn_implementation", None)
    config = getattr(transformers, kind_of_config)(
        **{key: value for key, value in settings.items() if value is not None}
    )
    config.eos_token_id = config.bos_token_id = config.pad_token_id = None
    torch.manual_seed(seed)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=kind)
    apart = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, sharpness / parameter.shape[1] ** 0.5)
            elif name.endswith("bias"):  # made as zeros, which nobody would miss
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=apart).to(dtype))
    return made.eval()


def policy(
    architecture: str = "llama",
    dtype: torch.dtype = torch.float64,
    seed: int = 3,
    sharpness: float = 1.5,
    **changes: Any,
) -> Policy:
    """A random policy over the small vocabulary. With seed 3 every architecture ends some responses and not others."""
    words = small_tokenizer()
    made = model(architecture, len(words), dtype, seed, sharpness, **changes)
    with torch.no_grad():  # the two markers' logits vary most, so that both come out within a few steps
        made.get_output_embeddings().weight[-3:-1] *= 2
    return Policy(made, words, Card("latent", "tiny", 4), architecture)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1000 * length + seed)
    return tuple(torch.randint(0, 20, (length,), generator=generator).tolist())


def mixed_requests(count: int = 12) -> list[Request]:
    """Latent and explicit rows, three noise scales, three temperatures, ragged prompts of which some are shared."""
    return [
        Request(
            prompt(7 + number % 5),
            noise.row_key(1, number % 5, number),
            latent=number % 4 != 3,
            noise_scale=[1.0, 0.0, 0.5][number % 3],
            temperature=[0.6, 1.3, 0.0][number // 2 % 3],
        )
        for number in range(count)
    ]


def engine(policy: Policy, slots: int = 64, limit: int = LIMIT, **changes: Any) -> Engine:
    return Engine(policy, replace(LATENTS, **changes), TEXTS, limit, slots)


def compute_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop `transformers` and the noise from passing through float32 on the way: tolerances can then be 1e-9.

    A float64 model still casts to float32 inside its norms, and an error of 1e-8 there grows over the steps of a
    response; a real defect could hide in the tolerance this asks for.
    """
    to, single, softmax, gumbel = torch.Tensor.to, torch.Tensor.float, torch.nn.functional.softmax, noise.gumbel

    def keep(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.dtype == torch.float64 and (args[:1] == (torch.float32,) or kwargs.get("dtype") == torch.float32):
            return self
        return to(self, *args, **kwargs)

    def exact_softmax(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if x.dtype == torch.float64:
            kwargs.pop("dtype", None)
        return softmax(x, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", keep)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else single(self))
    monkeypatch.setattr(torch.nn.functional, "softmax", exact_softmax)
    monkeypatch.setattr(noise, "gumbel", lambda *args: gumbel(*args).double())
