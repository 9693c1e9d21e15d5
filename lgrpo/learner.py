"""One batch of groups becomes optimiser steps (docs/method.md, 3 to 5)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lgrpo import objective, scoring
from lgrpo.budget import Budget, Parts, Report, unheard
from lgrpo.divergence import IN_A_ROW
from lgrpo.groups import Group, advantages_of, group_numbers
from lgrpo.initial import Initial
from lgrpo.optimizer import Optimizer
from lgrpo.plan import TrainSettings
from lgrpo.policy import Policy
from lgrpo.policy.checkpointing import checkpointed
from lgrpo.rollout import Rollout


class Learner:
    """Holds the optimizer, and the initial weights where the KL needs them.

    Between micro-batches a batch is its rollouts, on the CPU, and [N, T] tensors of N rollouts and T positions, the
    longest response: what a micro-batch needs besides is rebuilt when its turn comes.
    """

    def __init__(
        self,
        policy: Policy,
        settings: TrainSettings,
        initial: Policy | None = None,
        on_smaller: Report = unheard,
        on_refused: Callable[[str], None] = unheard,
    ):
        """`initial`: what the KL is taken to, where `policy` has already moved on from it.

        `on_smaller(name, value)` hears when memory ran out and an optimiser step is done again in smaller parts,
        `on_refused(operation)` where the same update would not be the same twice.
        """
        self.policy, self.settings = policy, settings
        for parameter in policy.model.parameters():
            parameter.requires_grad_(False)
        self.trainable = policy.trainable()
        for parameter in self.trainable:
            parameter.requires_grad_(True)
        self.initial = Initial(self.trainable, (initial or policy).trainable()) if settings.kl else None
        self.budget = Budget(settings.micro_tokens, on_smaller, on_refused)
        self.optimizer = Optimizer(
            self.trainable,
            settings.lr,
            settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            report=on_smaller,
        )

    def learn(self, groups: Sequence[Group]) -> dict[str, float]:
        """Take the optimiser steps of one batch; returns the numbers that describe them.

        Old log-probabilities come from this same forward pass and the same micro-batches. The first optimiser step
        is the old policy's own: its forward pass gives both, so the ratio there is exactly 1.
        """
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        minis = self._minibatches(groups)
        reference = None
        if self.initial is not None:
            with self.initial.in_place():
                reference = self._score(rollouts, minis)
        old = self._score(rollouts, minis[1:])

        lengths = torch.tensor([rollout.length for rollout in rollouts])
        seen = pad_sequence([rollout.logprob for rollout in rollouts], batch_first=True).double()
        advantages = self._advantages(groups, seen.sum(1) / lengths, old)
        steps: list[dict[str, float]] = []
        for mini in minis:
            steps.append(self._step(rollouts, mini, advantages, old, reference, first=not steps))
            if self.optimizer.skipped >= IN_A_ROW:
                break
        numbers = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        numbers["skipped"] = sum(step["skipped"] for step in steps)
        mask = torch.arange(old.shape[1]) < lengths[:, None]
        gap = (torch.where(mask, old.cpu(), 0.0) - seen).abs().sum()
        return {**numbers, "rollout_gap": float(gap) / max(int(lengths.sum()), 1)}

    def _advantages(self, groups: Sequence[Group], mean_logprob: Tensor, like: Tensor) -> Tensor:
        """Of each position [N, T], on the device; mean_logprob [N]: of the responses, under the old policy."""
        advantages = advantages_of(groups, self.settings)
        each = advantages[:, None].repeat(1, like.shape[1])
        if self.settings.first_token:
            each[:, 0] *= objective.first_token_winners(advantages, mean_logprob, group_numbers(groups))
        return each.to(like.device)

    def rehearse(self, rollouts: Sequence[Rollout]) -> None:
        """Compute the gradient of the first micro-batch that these are cut into, and drop it."""
        numbers, device = list(range(len(rollouts))), self.policy.device

        def gradient(parts: Parts) -> None:
            with checkpointed(self.settings.checkpointing, self.policy.model):
                batch = self._collate(rollouts, parts[0])
                zeros = torch.zeros(batch.mask.shape, device=device)
                self._backward(batch, zeros, zeros, zeros if self.initial else None, len(rollouts))

        self.budget.spend(lambda positions: self._cut(rollouts, numbers, positions), gradient, self.optimizer.clear)
        self.optimizer.clear()

    def _minibatches(self, groups: Sequence[Group]) -> list[list[int]]:
        """Rollout numbers of each optimiser step: `update_batch` groups, in order."""
        size, group = self.settings.update_batch, self.settings.group
        starts = range(0, len(groups), size)
        return [list(range(at * group, min(at + size, len(groups)) * group)) for at in starts]

    @torch.no_grad()
    def _score(self, rollouts: Sequence[Rollout], minis: Sequence[list[int]]) -> Tensor:
        """Log-probabilities [N, T] under the model as it is, on the device; 0 for rollouts in none of `minis`."""
        longest = max(rollout.length for rollout in rollouts)
        dtype = torch.promote_types(self.policy.dtype, torch.float32)
        out = torch.zeros(len(rollouts), longest, dtype=dtype, device=self.policy.device)

        def score(parts: Parts) -> None:
            for part in parts:
                batch = self._collate(rollouts, part)
                components, hard = scoring.component_logprobs(self.policy, batch, self.settings.temperature)
                logprob = scoring.logprob(components, hard, batch, self.settings.latent_settings)
                out[torch.tensor(part, device=out.device), : logprob.shape[1]] = logprob

        for mini in minis:
            self.budget.spend(lambda positions: self._cut(rollouts, mini, positions), score, lambda: None)  # noqa: B023
        return out

    def _cut(self, rollouts: Sequence[Rollout], numbers: list[int], positions: int) -> Parts:
        """Cut an optimiser step into micro-batches of at most `positions`, or of one rollout.

        Rows of similar length together, so that little of a micro-batch is padding.
        """
        rows = scoring.pack([rollouts[number] for number in numbers], min(scoring.COLUMNS, positions))

        def width(row: list[int]) -> int:
            first = rollouts[numbers[row[0]]]
            return len(first.prompt) + sum(rollouts[numbers[place]].length for place in row)

        parts: Parts = []
        taken = 0
        for row in sorted(rows, key=width):
            if not parts or (taken + 1) * width(row) > positions:
                parts.append([])
                taken = 0
            parts[-1] += [numbers[place] for place in row]
            taken += 1
        return parts

    def _collate(self, rollouts: Sequence[Rollout], part: list[int]) -> scoring.Batch:
        columns = min(scoring.COLUMNS, self.budget.positions)
        return scoring.collate(self.policy, [rollouts[number] for number in part], self.settings.tau, columns)

    def _step(
        self,
        rollouts: Sequence[Rollout],
        mini: list[int],
        advantages: Tensor,
        old: Tensor,
        reference: Tensor | None,
        first: bool = False,
    ) -> dict[str, float]:
        """One optimiser step over its micro-batches; the loss is counted once over all of them.

        advantages, old, reference float [N, T] of the whole batch. The `first` one of a batch fills its part of `old`.
        """
        count = sum(rollouts[number].length for number in mini)

        def gradients(parts: Parts) -> tuple[Tensor, float]:
            sums, columns, filled = torch.zeros(3, dtype=torch.float64, device=old.device), 0, 0
            for part in parts:
                batch = self._collate(rollouts, part)
                place = torch.tensor(part, device=old.device), slice(0, batch.mask.shape[1])
                known = None if reference is None else reference[place]
                with checkpointed(self.settings.checkpointing, self.policy.model):
                    before = None if first else old[place]
                    part_sums, logprob = self._backward(batch, advantages[place], before, known, count)
                sums += part_sums
                if first:
                    old[place] = logprob
                columns, filled = columns + batch.ids.numel(), filled + batch.filled
            return sums, 1 - filled / columns

        sums, padding = self.budget.spend(
            lambda positions: self._cut(rollouts, mini, positions), gradients, self.optimizer.clear
        )
        loss, kl, clipped = sums.tolist()
        report = self.optimizer.step() if math.isfinite(loss) else self.optimizer.leave_out()
        return {
            "loss": loss,
            "kl": kl,
            "clip_fraction": clipped / max(count, 1),
            "grad_norm": report.grad_norm,
            "moved": report.moved,
            "skipped": float(report.skipped),
            "padding": padding,
        }

    def _backward(
        self, batch: scoring.Batch, advantage: Tensor, old: Tensor | None, reference: Tensor | None, count: int
    ) -> tuple[Tensor, Tensor]:
        """Add the gradient of a micro-batch; `old` is None where this is the old policy.

        Returns its part of loss and KL, and how many ratios were clipped, [3]; and the log-probabilities [N, T].
        """
        settings, mask = self.settings, batch.mask
        components, hard = scoring.component_logprobs(self.policy, batch, settings.temperature)
        logprob = scoring.logprob(components, hard, batch, settings.latent_settings, advantage)
        old = logprob.detach() if old is None else old
        loss = objective.ppo_loss(logprob, old, advantage, mask, settings.clip, settings.dual_clip, count)
        kl = torch.zeros_like(loss)
        if reference is not None:
            # Its gradient is the true one: the mirrored one would push away from the initial policy.
            plain = scoring.logprob(components, hard, batch, settings.latent_settings)
            kl = objective.masked_mean(objective.kl_penalty(plain, reference), mask, count)
            loss = loss + settings.kl * kl
        loss.backward()
        ratio = (logprob.detach() - old).exp()
        clipped = (((ratio - 1).abs() > settings.clip) & mask).sum()
        return torch.stack([loss.detach().double(), kl.detach().double(), clipped.double()]), logprob.detach()
