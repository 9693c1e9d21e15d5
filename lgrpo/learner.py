"""One batch of groups becomes optimiser steps (docs/method.md, 3 to 5)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lgrpo import objective, scoring
from lgrpo.groups import Group, advantages_of, group_numbers
from lgrpo.optimizer import Optimizer
from lgrpo.plan import TrainSettings
from lgrpo.policy import Policy
from lgrpo.rollout import Rollout


@dataclass(frozen=True)
class _Micro:
    """Rollouts that go through the model together; all [N, T] tensors are on the device."""

    numbers: list[int]  # of the rollouts, in the batch
    batch: scoring.Batch
    old: Tensor  # [N, T] log-probabilities before the first update
    reference: Tensor | None  # [N, T] the same under the initial policy


class Learner:
    """Holds the optimizer, and the initial policy where the KL needs it."""

    def __init__(self, policy: Policy, settings: TrainSettings, initial: Policy | None = None):
        """`initial`: what the KL is taken to, where `policy` has already moved on from it."""
        self.policy, self.settings = policy, settings
        for parameter in policy.model.parameters():
            parameter.requires_grad_(False)
        trainable = policy.trainable()
        for parameter in trainable:
            parameter.requires_grad_(True)
        self.reference = None
        if settings.kl:
            model = copy.deepcopy(policy.model) if initial is None else initial.model
            self.reference = Policy(model.requires_grad_(False), policy.tokenizer, policy.card, policy.name)
        self.optimizer = Optimizer(trainable, settings.lr, settings.weight_decay, max_grad_norm=settings.max_grad_norm)

    def learn(self, groups: Sequence[Group]) -> dict[str, float]:
        """Take the optimiser steps of one batch; returns the numbers that describe them.

        Old log-probabilities come from this same forward pass and the same micro-batches, so the first
        optimiser step has ratio 1 exactly.
        """
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        advantages = advantages_of(groups, self.settings)
        minis = [self._prepare(rollouts, numbers) for numbers in self._minibatches(groups)]
        mean_logprob = torch.zeros(len(rollouts), dtype=torch.float64)
        gap, count = 0.0, 0
        for micro in (micro for mini in minis for micro in mini):
            lengths = micro.batch.mask.sum(1)
            mean_logprob[micro.numbers] = ((micro.old * micro.batch.mask).sum(1) / lengths).double().cpu()
            for row, number in enumerate(micro.numbers):
                seen = rollouts[number].logprob
                gap += float((micro.old[row, : len(seen)].cpu() - seen).abs().sum())
                count += len(seen)
        keeps = torch.ones(len(rollouts), dtype=torch.bool)
        if self.settings.first_token:
            keeps = objective.first_token_winners(advantages, mean_logprob, group_numbers(groups))

        totals = {"loss": 0.0, "kl": 0.0, "clip_fraction": 0.0, "grad_norm": 0.0, "moved": 0.0, "skipped": 0.0}
        for mini in minis:
            for name, value in self._update(mini, advantages, keeps).items():
                totals[name] += value
        numbers = {name: value / len(minis) for name, value in totals.items()}
        numbers["skipped"] = totals["skipped"]
        return {**numbers, "rollout_gap": gap / max(count, 1)}

    def _minibatches(self, groups: Sequence[Group]) -> list[list[int]]:
        """Rollout numbers of each optimiser step: `update_batch` groups, in order."""
        size, group = self.settings.update_batch, self.settings.group
        starts = range(0, len(groups), size)
        return [list(range(at * group, min(at + size, len(groups)) * group)) for at in starts]

    @torch.no_grad()
    def _prepare(self, rollouts: Sequence[Rollout], numbers: list[int]) -> list[_Micro]:
        """Cut one optimiser step into micro-batches of at most `micro_tokens`, and score them."""
        out = []
        for part in self._cut(rollouts, numbers):
            batch = scoring.collate(self.policy, [rollouts[number] for number in part], self.settings.tau)
            old = self._logprob(self.policy, batch)
            reference = None if self.reference is None else self._logprob(self.reference, batch)
            out.append(_Micro(part, batch, old, reference))
        return out

    def _cut(self, rollouts: Sequence[Rollout], numbers: list[int]) -> list[list[int]]:
        """Rows of similar length together, so that little of a micro-batch is padding."""
        rows = scoring.pack([rollouts[number] for number in numbers], scoring.COLUMNS)

        def width(row: list[int]) -> int:
            first = rollouts[numbers[row[0]]]
            return len(first.prompt) + sum(rollouts[numbers[place]].length for place in row)

        parts: list[list[int]] = []
        taken = 0
        for row in sorted(rows, key=width):
            if not parts or (taken + 1) * width(row) > self.settings.micro_tokens:
                parts.append([])
                taken = 0
            parts[-1] += [numbers[place] for place in row]
            taken += 1
        return parts

    def _logprob(self, policy: Policy, batch: scoring.Batch) -> Tensor:
        """[N, T], with its true gradient."""
        components, hard = scoring.component_logprobs(policy, batch, self.settings.temperature)
        return scoring.logprob(components, hard, batch, self.settings.latent_settings)

    def _update(self, mini: list[_Micro], advantages: Tensor, keeps: Tensor) -> dict[str, float]:
        """One optimiser step over its micro-batches; the loss is counted once over all of them."""
        settings = self.settings
        count = sum(int(micro.batch.mask.sum()) for micro in mini)
        loss_sum = kl_sum = clipped = 0.0
        for micro in mini:
            mask = micro.batch.mask
            advantage = advantages[micro.numbers].to(mask.device)[:, None].repeat(1, mask.shape[1])
            advantage[:, 0] *= keeps[micro.numbers].to(mask.device)
            components, hard = scoring.component_logprobs(self.policy, micro.batch, settings.temperature)
            logprob = scoring.logprob(components, hard, micro.batch, settings.latent_settings, advantage)
            loss = objective.ppo_loss(logprob, micro.old, advantage, mask, settings.clip, settings.dual_clip, count)
            if micro.reference is not None:
                # Its gradient is the true one: the mirrored one would push away from the initial policy.
                plain = scoring.logprob(components, hard, micro.batch, settings.latent_settings)
                kl = objective.masked_mean(objective.kl_penalty(plain, micro.reference), mask, count)
                loss = loss + settings.kl * kl
                kl_sum += float(kl.detach())
            loss.backward()
            loss_sum += float(loss.detach())
            ratio = (logprob.detach() - micro.old).exp()
            clipped += float((((ratio - 1).abs() > settings.clip) & mask).sum())
        report = self.optimizer.step()
        return {
            "loss": loss_sum,
            "kl": kl_sum,
            "clip_fraction": clipped / max(count, 1),
            "grad_norm": report.grad_norm,
            "moved": report.moved,
            "skipped": float(report.skipped),
        }
