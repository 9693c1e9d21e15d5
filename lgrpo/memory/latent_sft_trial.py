"""The worst case of each part of Latent-SFT, tried once before the first step (trial.py: of train).

A full micro-batch of the longest prompts, chains and responses that the schedule allows goes forward and backward
through each part that has steps left, beside the states of its optimizer; while those of the walking model are there,
held-out rollouts fill their slots. Nothing is stepped, no random number is drawn and nothing is kept.

On a CPU, which pages memory where it runs short, a single row goes through each part: enough to know that every part
takes its longest row, and less than an ordinary step. A micro-batch of them would take several, and the rollouts more.
"""

import torch
from torch import nn

from lgrpo.budget import Budget, needed
from lgrpo.engine import Engine
from lgrpo.latent_sft.build import build_parts
from lgrpo.latent_sft.encoder import Encoder
from lgrpo.latent_sft.examples import Example
from lgrpo.latent_sft.fit import Part, only_trained, optimizer_of
from lgrpo.latent_sft.labels import Labels
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.latent_sft.walk import walk_part
from lgrpo.memory.trial import Trial, halve_slots, longest_prompt
from lgrpo.optimizer import Optimizer
from lgrpo.policy import Policy
from lgrpo.policy.checkpointing import checkpointed
from lgrpo.rollout import Request


def trial(policy: Policy, engine: Engine, schedule: Schedule, budget: Budget, done: int, full: bool) -> Trial:
    """Run the worst case of the steps after the first `done`, with `engine.slots` and the budget halved until it fits.

    The walking model comes first, alone on the device as it will be; then the encoder stands beside it for as long as
    the parts of stage 1 are tried. `full`: micro-batches and rollouts, as on a GPU, rather than single rows. UserError
    where nothing fits.
    """
    cuda = policy.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(policy.device)
    longest = longest_example(policy, schedule)
    walk = walk_part(policy, [longest], _even_labels(longest, schedule), schedule, budget)

    def try_part(part: Part, *modules: nn.Module) -> Optimizer:
        only_trained(part.parameters, *modules)
        optimizer = optimizer_of(part, schedule)  # its states stand beside the gradient
        rows = max(1, budget.positions // part.width(longest)) if full else 1
        with checkpointed(schedule.checkpointing, *modules):
            part.learn([0] * rows, 0)
        optimizer.clear()
        torch.cuda.empty_cache()
        return optimizer

    states = try_part(walk, policy.model)
    if full:
        _fit_held_out(policy, engine, schedule)
    del states
    if done < schedule.stage_1_steps:
        with needed("the encoder, a second model of this size"):
            encoder = Encoder(policy, schedule.ratio, schedule.k, schedule.output_scale)
        before = 0
        for part in build_parts(policy, encoder, [longest], schedule, budget):
            before += part.steps
            if part.steps and done < before:
                try_part(part, policy.model, encoder)
    peak = torch.cuda.max_memory_reserved(policy.device) if cuda else None
    return Trial(engine.slots, budget.positions, peak)


def _fit_held_out(policy: Policy, engine: Engine, schedule: Schedule) -> None:
    """Halve `engine.slots` until the longest rollouts of the held-out problems fit."""

    def roll_out() -> None:
        count = min(4 * engine.slots, schedule.held_out)  # as many as `evaluate.answer` hands over at a time
        asked = [longest_prompt(policy, schedule.max_prompt, number) for number in range(count)]
        engine.rehearse([Request(prompt, number, noise_scale=0.0) for number, prompt in enumerate(asked)])

    halve_slots(engine, roll_out)
    engine.release()


def longest_example(policy: Policy, schedule: Schedule) -> Example:
    """The longest prompt, the longest chain that still leaves room for a response, and the longest response then."""
    least = len(policy.end_ids) + 2  # `</think>`, an answer of one token, and what ends the sequence
    latents = max(1, min(-(-schedule.max_chain // schedule.ratio), schedule.max_response - least))
    chain = (0,) * min(schedule.max_chain, latents * schedule.ratio)
    answer = (0,) * (schedule.max_response - latents - least + 1)
    response = (*policy.end_ids, *answer, policy.eos_ids[0])
    return Example(longest_prompt(policy, schedule.max_prompt, 0), chain, response)


def _even_labels(example: Example, schedule: Schedule) -> Labels:
    """A chain for it: each step an even mixture of the first K tokens."""
    latents, k = example.latents(schedule.ratio), schedule.k
    indices = torch.arange(k, dtype=torch.int32).expand(latents, k)
    return Labels(indices, torch.full((latents, k), 1 / k), torch.tensor([0, latents]))
