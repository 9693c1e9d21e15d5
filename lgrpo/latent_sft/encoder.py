"""The encoder of Latent-SFT: it reads a problem with its chain of thought and writes the chain as superpositions.

A copy of the language model with one new token, `compress`, after every `ratio` tokens of the chain. The final hidden
state at each of them becomes a superposition over the decoder's vocabulary: logits = scale * hidden . E^T with E the
decoder's input embedding, then the K best of them and a softmax (docs/method.md, 6).

The scale is a departure: hidden states come out of a norm that was made for the output head, and without it the
mixtures saturate to single tokens at once, and no gradient is left to learn from.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lgrpo import superposition
from lgrpo.chunks import by_chunks, embedding_table
from lgrpo.latent_sft.examples import COMPRESS, PAD, Example, pad
from lgrpo.latent_sft.masks import induction_mask
from lgrpo.policy import Policy
from lgrpo.policy.products import linear


class Latents(NamedTuple):
    """Superpositions of all compress tokens of a batch, one row after the other: R rows in all."""

    indices: Tensor  # int64 [R, K]
    weights: Tensor  # float [R, K], softmax over the K


class Encoder(nn.Module):
    """The copy and the compress token's own embedding."""

    def __init__(self, policy: Policy, ratio: int, k: int, scale: float):
        super().__init__()
        self.ratio, self.k, self.scale = ratio, k, scale
        self.policy = Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.card, f"{policy.name} (encoder)")
        self.model = self.policy.model  # registers its parameters
        with torch.no_grad():  # a token the model has read in this very place: what comes after it is the chain
            begin = policy.embedding(torch.tensor(policy.begin_ids[-1], device=policy.device))
        self.compress = nn.Parameter(begin.clone())

    def states(self, examples: Sequence[Example]) -> Tensor:
        """Final hidden states [R, D] at the compress tokens of all examples."""
        rows = [(*example.prompt, *self.interleave(example)) for example in examples]
        ids = pad(rows, PAD, self.policy.device)
        embeds = self.policy.embedding(ids.clamp(min=0))
        embeds = torch.where((ids == COMPRESS)[..., None], self.compress.to(embeds.dtype), embeds)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        hidden = self.policy.hidden(embeds, induction_mask(ids, COMPRESS, PAD), positions)
        return hidden[ids == COMPRESS]

    def interleave(self, example: Example) -> list[int]:
        """The chain with a compress token after every `ratio` tokens and after the rest."""
        out: list[int] = []
        for at in range(0, len(example.chain), self.ratio):
            out += [*example.chain[at : at + self.ratio], COMPRESS]
        return out

    def logits(self, states: Tensor, embedding: Tensor) -> Tensor:
        """states [R, D], embedding [V, D] of the decoder: logits [R, V], at least float32."""
        logits = linear(states * self.scale, embedding)
        return logits if logits.dtype == torch.float64 else logits.float()

    def latents(self, examples: Sequence[Example], decoder: Policy) -> Latents:
        """The superpositions of all examples, in order; gradients flow through the weights."""
        table = embedding_table(decoder)
        states = self.states(examples)
        with torch.no_grad():  # which tokens: no gradient goes through the choice
            top = by_chunks(lambda s: self.logits(s, table).topk(self.k).indices, len(table), states)
        rows = table[top]  # [R, K, D]: only the chosen logits are computed with a gradient
        chosen = torch.einsum("rd,rkd->rk", states * self.scale, rows)
        weights = (chosen if chosen.dtype == torch.float64 else chosen.float()).softmax(-1)
        return Latents(top, weights)


def mixed(latents: Latents, decoder: Policy) -> Tensor:
    """Input embeddings [R, D] of the superpositions, from the decoder's table."""
    return superposition.embed(latents.indices, latents.weights, decoder.embedding)
