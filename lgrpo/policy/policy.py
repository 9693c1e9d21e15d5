"""A causal language model with its tokenizer and what makes its chain latent.

A checkpoint is an ordinary Hugging Face folder; `lgrpo.json` beside the weights says whether the chain is
latent, by which recipe it was made and with how many tokens a superposition. Marker ids are derived from the
tokenizer at each load and never stored in code (docs/method.md, 1).
"""

import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lgrpo.errors import UserError, first_line
from lgrpo.policy import attention, files, products, trained_on
from lgrpo.policy.cache import SlotCache
from lgrpo.policy.card import CARD, MARK, Card, read_card
from lgrpo.policy.deadline import deadline
from lgrpo.policy.lean import LeanDecoder
from lgrpo.policy.masks import additive_masks
from lgrpo.policy.prompt import BEGIN, PLAIN_TEMPLATE, end_of_sequence, marker_ids, prompt_text
from lgrpo.runs.contents import compare

PATIENCE = 5  # seconds of the processor for the first prompt: a chat template takes thousandths


class Policy:
    """Model, tokenizer, markers. `model` is a `transformers` causal language model; everything else is derived."""

    def __init__(self, model: Any, tokenizer: Any, card: Card, name: str):
        self.model, self.tokenizer, self.card, self.name = model, tokenizer, card, name
        self.trained_on = trained_on.nothing()  # int64 [M]: hashes of problems
        self.knows_trained_on = True  # false: the hub may have more of them, and was never asked
        self._pieces: dict[int, str] = {}
        if tokenizer.chat_template is None:
            tokenizer.chat_template = PLAIN_TEMPLATE
        self.begin_ids, self.end_ids = marker_ids(tokenizer, name)
        self.end_id = self.end_ids[0]
        self.embedding: nn.Module = model.get_input_embeddings()
        rows = self.embedding.weight.shape[0]
        if (tokens := max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))) > rows:
            raise UserError(
                f"{name}: the tokenizer has {tokens} tokens but the model embeds {rows}; "
                "use the tokenizer this model was trained with"
            )
        self.eos_ids = end_of_sequence(model, tokenizer)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = self.eos_ids[0]
        self.pad_id: int = tokenizer.pad_token_id
        products.install(model)
        self.shares_prompts = attention.install(model)
        self.lean = LeanDecoder.of(model) if self.shares_prompts else None
        named = inspect.signature(model.base_model.forward).parameters
        self._cache_argument = "cache" if "cache" in named else "past_key_values"  # its name since transformers 5.24
        self._softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> "Policy":
        """Load a folder or a hub name. dtype: float32 on a CPU and bfloat16 on a GPU unless given.

        Raises UserError when `source` is no causal language model that can be loaded whole.
        """
        import transformers

        dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
        try:
            files.check(source)
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                str(source),
                dtype=dtype,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are in the report, and refused below
            )
        except UserError:
            raise
        except Exception as error:  # each file format fails in its own way
            raise UserError(f"{source}: cannot be loaded as a causal language model ({first_line(error)})") from error
        card = read_card(source, mark := getattr(model.config, MARK, None))
        if broken := sorted(report["missing_keys"]) or sorted(str(key) for key in report["mismatched_keys"]):
            raise UserError(
                f"{source}: {len(broken)} tensors are missing or have another shape, {broken[0]} the first; "
                "the checkpoint is incomplete"
            )
        if strange := sorted(report["unexpected_keys"]):
            raise UserError(
                f"{source}: {len(strange)} tensors have no place in this architecture, {strange[0][:80]} the first; "
                "config.json and weights do not belong together"
            )
        model = model.to(device).eval()
        try:
            policy = cls(model, tokenizer, card, Path(source).name)
            with deadline(PATIENCE, f"it takes more than {PATIENCE} seconds for an empty problem"):
                policy.asked("")
            policy.check_weights()
            policy.check_head()
        except UserError:
            raise
        except Exception as error:  # entries of another type fail where they are first used
            raise UserError(f"{source}: tokenizer or configuration cannot be used ({first_line(error)})") from error
        if card.k > (tokens := len(tokenizer)):
            raise UserError(
                f"{source}: {CARD} mixes k = {str(card.k)[:20]} tokens where the model has {tokens}; lower k"
            )
        policy.trained_on, certain = trained_on.read(source)
        ours = mark is not None or card != Card("explicit")  # a plain model has no such file
        policy.knows_trained_on = certain or not ours
        return policy

    def save(self, folder: Path) -> None:
        """Write model, tokenizer, chat template and `lgrpo.json` into an existing folder, and read the weights back.

        config.json says that there is a `lgrpo.json`. Raises OSError where a tensor on disk is not, bit for bit, the
        one in memory.
        """
        from transformers import GenerationConfig
        from transformers.core_model_loading import revert_weight_conversion

        ends = {"pad_token_id": self.pad_id, "eos_token_id": list(self.eos_ids)}
        self.model.generation_config.update(**ends)
        try:
            self.model.generation_config.validate(strict=True)
        except ValueError:  # many a published one contradicts itself, which transformers refuses to save
            kept = self.model.generation_config.bos_token_id
            self.model.generation_config = GenerationConfig(bos_token_id=kept, **ends)
        setattr(self.model.config, MARK, self.card.mode)
        self.model.save_pretrained(folder)
        # Of some architectures other tensors are written than are in memory: an expert's own, out of those of all.
        compare(
            sorted(folder.glob("model*.safetensors")), revert_weight_conversion(self.model, self.model.state_dict())
        )
        self.tokenizer.save_pretrained(folder)
        (folder / CARD).write_text(json.dumps(asdict(self.card), indent=1) + "\n")
        trained_on.write(folder, self.trained_on)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype  # type: ignore[return-value]

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def latent(self) -> bool:
        return self.card.mode == "latent"

    def prompt_ids(self, problem: str, latent: bool) -> list[int]:
        """Ids of the user turn and the generation prompt; a latent one ends with `<think>` exactly once."""
        text = prompt_text(self.tokenizer, problem, self.name)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids if not latent or self._template_begins else ids + self.begin_ids

    @cached_property
    def _template_begins(self) -> bool:
        """Whether the chat template ends with `<think>` by itself: a problem of the user's may end so, too."""
        return prompt_text(self.tokenizer, "1 + 1?", self.name).rstrip().endswith(BEGIN)

    def asked(self, problem: str) -> tuple[int, ...]:
        """The prompt of a problem as this policy is asked, latent or not: what is measured is what it will read."""
        return tuple(self.prompt_ids(problem, self.latent))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of hard tokens, without special ones."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def piece(self, token: int) -> str:
        """Text of one token, special ones too; bytes that are no character alone become U+FFFD."""
        if token not in self._pieces:
            self._pieces[token] = str(self.tokenizer.decode([token]))
        return self._pieces[token]

    def trainable(self) -> list[nn.Parameter]:
        """Parameters that reinforcement trains: all but input embedding and output head (docs/method.md, 5)."""
        frozen = {id(self.embedding.weight)}
        if (head := self.model.get_output_embeddings()) is not None:
            frozen |= {id(parameter) for parameter in head.parameters()}
        return [parameter for parameter in self.model.parameters() if id(parameter) not in frozen]

    def hidden(
        self,
        embeds: Tensor,
        allowed: Tensor,
        positions: Tensor,
        cache: Any = None,
        key_positions: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states.

        embeds [B, T, D]; allowed bool [B, T, S], True = may attend, S key columns; positions int64 [B, T].
        The S columns are the T positions unless key_positions int64 [B, S] says otherwise, as over a SlotCache.
        Always passes an explicit mask: without it `transformers` takes positions that do not count up by one
        for packed sequences and cuts attention.
        """
        keys = positions if key_positions is None else key_positions
        mask = additive_masks(self.model.config.get_text_config(), allowed, positions, keys, embeds.dtype)
        if isinstance(cache, SlotCache) and self.lean is not None and isinstance(mask, Tensor):
            return self.lean(embeds, positions, mask, cache)
        output = self.model.base_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=cache is not None,
            **({} if cache is None else {self._cache_argument: cache}),
            **({"slot_cache": cache} if isinstance(cache, SlotCache) and cache.shared else {}),
        )
        return output.last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], at least float32."""
        logits = self.model.get_output_embeddings()(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap

    def check_weights(self) -> None:
        """Raises UserError where a weight is no finite number: nothing this model says would mean anything."""
        for name, parameter in self.model.named_parameters():
            if not all(math.isfinite(float(end)) for end in torch.aminmax(parameter.detach())):
                raise UserError(
                    f"{self.name}: {name} holds numbers that are not finite; copy or fetch the weights again"
                )

    def check_head(self) -> None:
        """Compare `head` with the model's own logits once: some architectures scale theirs. Raises UserError."""
        ids = torch.tensor([self.end_ids], device=self.device)
        length = ids.shape[1]
        with torch.no_grad():
            causal = torch.ones(1, length, length, dtype=torch.bool, device=self.device).tril()
            positions = torch.arange(length, device=self.device)[None]
            ours = self.head(self.hidden(self.embedding(ids), causal, positions))
            theirs = self.model(input_ids=ids, use_cache=False).logits.float()
        if not bool(theirs.isfinite().all()):
            raise UserError(f"{self.name}: its logits are no finite numbers; weights or config.json are damaged")
        # bfloat16 logits differ by rounding; a scale or a cap differs by far more.
        if not torch.allclose(ours.float(), theirs, rtol=0.05, atol=0.05 * float(theirs.abs().max())):
            kind = self.model.config.model_type
            raise UserError(f"{self.name}: architecture {kind!r} computes its logits in a way lgrpo does not support")
