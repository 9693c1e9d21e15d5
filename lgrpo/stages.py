"""Fits the parts of Latent-SFT one after the other, and can stop at any step and go on.

All the state of a run is in its checkpoint `progress-<steps>`: weights, the states of the optimizer at work, and the
number of steps done. Batches and noise follow from the seed and the step.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lgrpo.budget import reporter
from lgrpo.divergence import IN_A_ROW, diverged, not_finite
from lgrpo.interrupt import StopRequest
from lgrpo.latent_sft.examples import batch_numbers
from lgrpo.latent_sft.fit import Part, learning_rate, only_trained, optimizer_of
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.memory.device import now_on
from lgrpo.policy.checkpointing import checkpointed
from lgrpo.runs.contents import compare
from lgrpo.watch import Watch

PROGRESS = "progress"  # kind of the checkpoint
STATE, TENSORS = "init_state.json", "init_state.safetensors"
_OPTIMIZER = "optimizer."
RATES = {  # the option that gives a part its peak learning rate
    "warm start": "--set warm_up_lr=",
    "encoder": "--set encoder_lr=",
    "decoder": "--set decoder_lr=",
    "encoder and decoder": "--set joint_lr=",
    "walk": "--lr ",
}


class Stages:
    """Knows how many steps of all parts together are done. `modules` are what is trained, by name."""

    def __init__(
        self,
        modules: dict[str, nn.Module],
        examples: int,
        schedule: Schedule,
        watch: Watch,
        stop: StopRequest,
    ):
        self.modules, self.examples, self.schedule = modules, examples, schedule
        self.watch, self.run, self.stop = watch, watch.run, stop
        self.done = 0
        self.skipped = 0  # optimiser steps left out one after the other
        self._before = 0  # steps of the parts before this one
        self._saved: dict[str, Tensor] = {}  # of the optimizer that was interrupted
        self._optimizer_state: Callable[[], dict[str, Tensor]] = dict
        self._device = next(iter(modules["decoder"].parameters())).device

    def fit(self, part: Part, every: int, after: Callable[[int], None]) -> None:
        """Take the steps of a part that are not done yet; `after(step)` follows every `every`-th and the last.

        Raises KeyboardInterrupt, with everything saved, when asked to stop before the end of the run.
        """
        first = min(max(self.done - self._before, 0), part.steps)
        if first < part.steps:
            self._fit(part, first, every, after)
        self._before += part.steps

    def _fit(self, part: Part, first: int, every: int, after: Callable[[int], None]) -> None:
        self.watch.stage(part.name, part.steps, first, self._before)
        only_trained(part.parameters, *self.modules.values())
        optimizer = optimizer_of(part, self.schedule, reporter(self.run, self.watch.show))
        if first:
            optimizer.load_state(self._saved)
        optimizer.skipped = self.skipped
        self._optimizer_state = optimizer.state
        key = f"{part.name} {self.schedule.seed}"
        for step in range(first, part.steps):
            optimizer.set_lr(learning_rate(step, part.steps, part.lr, self.schedule.lr_warm_up))
            with checkpointed(self.schedule.checkpointing, *self.modules.values()):
                numbers = part.learn(batch_numbers(self.examples, self.schedule.batch, key, step), step)
            finite = all(math.isfinite(value) for value in numbers.values())
            report = optimizer.step() if finite else optimizer.leave_out()
            self.done, self.skipped = self._before + step + 1, optimizer.skipped
            numbers = {
                **numbers,
                "skipped": float(report.skipped),
                "grad_norm": report.grad_norm,
                "moved": report.moved,
                **now_on(self._device),
            }
            self.watch.step(step + 1, numbers, part=part.name)
            if report.skipped:
                self._left_out(part, step + 1)
            if (step + 1) % every == 0 or step + 1 == part.steps:
                after(step + 1)
            elif self.stop:
                self.save(step + 1)
            if self.stop and self.done < self.schedule.steps:
                self.watch.report()
                raise KeyboardInterrupt
        self._optimizer_state = dict  # its states must not stay beside those of the next part

    def _left_out(self, part: Part, step: int) -> None:
        """Tell of a step that was left out. Raises UserError where it is one too many."""
        self.watch.show.warn(f"{part.name} step {step}: loss or gradient not finite; the step was left out")
        if self.run is not None:
            self.run.event("skipped", step=self.done, part=part.name, count=1)
        if self.skipped < IN_A_ROW:
            return
        weights = (entry for module in self.modules.values() for entry in module.named_parameters())
        latest = self.run.latest() if self.run else None
        kept = f"{latest} is kept; " if latest else ""
        remedy = f"{kept}begin again with a lower rate, {RATES[part.name]}{part.lr / 2:g} and another --out"
        error = diverged(f"{part.name} step {step}", not_finite(weights), remedy)
        if self.run is not None:
            self.run.event("diverged", step=self.done, what=str(error))
        self.watch.report()
        raise error

    def skip(self, steps: int) -> None:
        """Parts of this many steps in all are behind."""
        self.done, self._before = max(self.done, steps), steps

    def save(self, step: int) -> None:
        """Keep the progress in the run."""
        if self.run is None:
            return

        def write(folder: Path) -> None:
            tensors = {_OPTIMIZER + name: tensor for name, tensor in self._optimizer_state().items()}
            for kind, module in self.modules.items():
                tensors |= {f"{kind}.{name}": value.detach() for name, value in module.named_parameters()}
            save_file(tensors, folder / TENSORS)
            compare([folder / TENSORS], tensors)
            state = {"done": self.done, "skipped": self.skipped, "modules": sorted(self.modules)}
            (folder / STATE).write_text(json.dumps(state), encoding="utf-8")

        self.run.save(f"{PROGRESS}-{self.done:06d}", write)
        self.run.prune()

    def saved_steps(self) -> int:
        """Steps of all parts that `resume` finds done."""
        found = self._progress()
        return found[1]["done"] if found else 0

    def _progress(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest progress that has all that is trained now: without its encoder, labels cannot be written again."""
        for folder in reversed(self.run.checkpoints() if self.run else []):
            if folder.name.startswith(f"{PROGRESS}-"):
                state = json.loads((folder / STATE).read_text(encoding="utf-8"))
                if set(self.modules) <= set(state["modules"]):
                    return folder, state
        return None

    @torch.no_grad()
    def resume(self) -> None:
        """Take up the saved weights and states, where there are any."""
        found = self._progress()
        self.done = self.saved_steps()
        if self.run is not None and self.run.resumed:
            self.run.rewind(self.done)
        if found is None:
            return
        tensors, self.skipped = load_file(found[0] / TENSORS), found[1]["skipped"]
        for kind, module in self.modules.items():
            for name, parameter in module.named_parameters():
                parameter.copy_(tensors[f"{kind}.{name}"])
        self._saved = {n.removeprefix(_OPTIMIZER): t for n, t in tensors.items() if n.startswith(_OPTIMIZER)}
