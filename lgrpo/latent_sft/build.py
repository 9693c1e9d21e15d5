"""Stage 1 of Latent-SFT, building the chain: losses of encoder and decoder (docs/method.md, 6).

The decoder reads `prompt <think> z1 t t z2 t t z3 </think> answer`: each latent z must hold what lets the decoder write
the segment t after it with nothing else in sight, and all latents together what the answer needs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lgrpo.budget import Budget
from lgrpo.chunks import by_chunks, embedding_table, log_probs_at
from lgrpo.latent_sft.encoder import Encoder, mixed
from lgrpo.latent_sft.examples import IGNORED, LATENT, PAD, Example, pad
from lgrpo.latent_sft.fit import Part, backward, trained
from lgrpo.latent_sft.masks import dual_track_positions, supervision_mask
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.policy import Policy


def decoder_row(example: Example, ratio: int) -> tuple[list[int], list[int]]:
    """Input ids of the decoder and their labels: the token each position has to predict, or IGNORED.

    The first `ratio` tokens of the chain are dropped: they come before the first compress token.
    """
    ids, labels = list(example.prompt), [IGNORED] * len(example.prompt)
    for at in range(ratio, len(example.chain), ratio):
        segment = example.chain[at : at + ratio]
        ids += [LATENT, *segment]
        labels += [*segment, IGNORED]
    ids += [LATENT, *example.response[:-1]]  # what ends the sequence is predicted and never read
    labels += example.response
    return ids, labels


def labelled(example: Example, ratio: int) -> int:
    """Positions of the decoder that carry a label."""
    return max(len(example.chain) - ratio, 0) + len(example.response)


def warm_up_loss(encoder: Encoder, decoder: Policy, examples: Sequence[Example], smoothing: float) -> Tensor:
    """Warm start of the encoder: each compress token puts out the even mixture of the chain tokens just before it.

    A departure from the paper, which starts from the untrained compress token and trains far longer. Returns the
    cross-entropy with label smoothing, summed over compress tokens.
    """
    ratio = encoder.ratio
    groups = [e.chain[at : at + ratio] for e in examples for at in range(0, len(e.chain), ratio)]
    targets = pad(groups, IGNORED, decoder.device)  # [R, ratio]
    table = embedding_table(decoder)

    def chunk(states: Tensor, targets: Tensor) -> Tensor:
        logits = encoder.logits(states, table)
        each = [
            cross_entropy(logits, column, ignore_index=IGNORED, label_smoothing=smoothing, reduction="none")
            for column in targets.unbind(1)
        ]
        return torch.stack(each).sum(0) / (targets != IGNORED).sum(1)

    return by_chunks(chunk, len(table), encoder.states(examples), targets).sum()


def build_loss(encoder: Encoder, decoder: Policy, examples: Sequence[Example]) -> Tensor:
    """Cross-entropy of the decoder on segments, `</think>` and answer, summed over labelled positions.

    Gradients reach whichever of encoder and decoder has parameters that ask for them.
    """
    rows = [decoder_row(example, encoder.ratio) for example in examples]
    ids = pad([row[0] for row in rows], PAD, decoder.device)
    labels = pad([row[1] for row in rows], IGNORED, decoder.device)
    embeds = decoder.embedding(ids.clamp(min=0))
    latents = mixed(encoder.latents(examples, decoder), decoder)
    embeds = embeds.masked_scatter((ids == LATENT)[..., None], latents)
    allowed = supervision_mask(ids, LATENT, decoder.end_ids, PAD)
    hidden = decoder.hidden(embeds, allowed, dual_track_positions(ids, LATENT))
    counted = labels != IGNORED
    return -log_probs_at(decoder, hidden[counted], labels[counted][:, None]).sum()


def build_parts(
    policy: Policy, encoder: Encoder, examples: Sequence[Example], schedule: Schedule, budget: Budget
) -> list[Part]:
    """Warm start, then the published three steps: encoder alone, decoder alone, both."""
    ratio, of_decoder = schedule.ratio, trained(policy, schedule)
    of_encoder = [*trained(encoder.policy, schedule), encoder.compress]
    of_both = [*of_encoder, *of_decoder]

    def of_encoder_row(example: Example) -> int:
        return len(example.prompt) + len(example.chain) + example.latents(ratio)

    def of_either_row(example: Example) -> int:
        return of_encoder_row(example) + len(example.response)

    def warm_up(numbers: Sequence[int], step: int) -> dict[str, float]:
        batch = [examples[number] for number in numbers]
        count = sum(e.latents(ratio) for e in batch)

        def losses(part: list[int]) -> tuple[Tensor]:
            return (warm_up_loss(encoder, policy, [batch[n] for n in part], schedule.smoothing) / count,)

        (loss,) = backward(losses, [of_encoder_row(e) for e in batch], budget, of_both)
        return {"loss": loss}

    def build(numbers: Sequence[int], step: int) -> dict[str, float]:
        batch = [examples[number] for number in numbers]
        count = sum(labelled(e, ratio) for e in batch)

        def losses(part: list[int]) -> tuple[Tensor]:
            return (build_loss(encoder, policy, [batch[n] for n in part]) / count,)

        (loss,) = backward(losses, [of_either_row(e) for e in batch], budget, of_both)
        return {"loss": loss}

    return [
        Part("warm start", schedule.warm_up_steps, schedule.warm_up_lr, of_encoder, warm_up, of_encoder_row),
        Part("encoder", schedule.encoder_steps, schedule.encoder_lr, of_encoder, build, of_either_row),
        Part("decoder", schedule.decoder_steps, schedule.decoder_lr, of_decoder, build, of_either_row),
        Part("encoder and decoder", schedule.joint_steps, schedule.joint_lr, of_both, build, of_either_row),
    ]
