"""Latent-SFT on one device (docs/method.md, 6): a language model gets its first latent chain.

1. Build the chain: an encoder learns to compress chains of thought into superpositions, the model to read them.
2. Label: the encoder writes the latent chain of every example, and is dropped.
3. Walk alone: the model learns to take these chains itself. Every few hundred steps it is scored without noise on a
   held-out slice of the training data; the best checkpoint is the result.

A run can stop at any step and go on: weights, optimizer states and the number of steps are all its state, and batches
and noise follow from the seed and the step.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lgrpo import evaluate, noise
from lgrpo.console import Show
from lgrpo.durable import remove_folder
from lgrpo.engine import Engine, TextSettings
from lgrpo.errors import UserError
from lgrpo.groups import Grader
from lgrpo.interrupt import StopRequest
from lgrpo.latent_sft.build import build_loss, labelled, warm_up_loss
from lgrpo.latent_sft.encoder import Encoder
from lgrpo.latent_sft.examples import Example, batch_numbers, cut, encode, order
from lgrpo.latent_sft.fit import Part, backward, learning_rate, only_trained, optimizer_of
from lgrpo.latent_sft.labels import Labels, perturb, write_labels
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.latent_sft.walk import walk_loss
from lgrpo.policy import Card, Policy
from lgrpo.problems import Problem
from lgrpo.reading import readable
from lgrpo.runs import Run
from lgrpo.superposition import LatentSettings

PROGRESS, LABELS = "progress", "labels"  # checkpoints that are there until the run is finished
STATE, TENSORS, CHAINS = "init_state.json", "init_state.safetensors", "labels.safetensors"


def initialise(
    policy: Policy,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
    schedule: Schedule,
    grader: Grader,
    run: Run | None,
    show: Show,
) -> Policy:
    """Teach `policy` (changed in place) to reason in latents; returns the best checkpoint, with a latent card.

    `run` may hold the same run's progress, and `policy` is the base model in that case too. Raises UserError when no
    problem has a chain that fits, and KeyboardInterrupt, with all progress saved, when asked to stop.
    """
    examples = _examples(policy, problems, schedule, show)
    with StopRequest() as stop:
        work = _Work(policy, examples, schedule, run, show, stop)
        labels = _load_labels(run)
        if labels is None:
            encoder = Encoder(policy, schedule.ratio, schedule.k, schedule.output_scale)
            work.resume(encoder)
            for part in _stage_1(policy, encoder, examples, schedule):
                work.fit(part, schedule.save_every, work.save_progress)
            labels = _label(policy, encoder, examples, schedule, run, show)
            work.drop_encoder()
        else:
            work.done = schedule.stage_1_steps
            work.resume(None)
        policy.card = Card("latent", schedule.recipe, schedule.k)
        best = _Best(policy, held_out, schedule, grader, run, show)
        work.offset = schedule.stage_1_steps

        def score_and_save(step: int) -> None:
            best.look(step)
            work.save_progress(step)

        work.fit(_stage_2(policy, examples, labels, schedule), schedule.eval_every, score_and_save)
    return best.finish()


def _examples(policy: Policy, problems: Sequence[Problem], schedule: Schedule, show: Show) -> list[Example]:
    """As many examples as stage 2 will visit, in a seeded choice."""
    encoded = encode(policy, problems, schedule.ratio, schedule.max_prompt, schedule.max_chain, schedule.max_response)
    if encoded.without_chain or encoded.too_long:
        show.say(
            f"{len(encoded.examples)} of {len(problems)} problems can be learnt from; left out: "
            f"{encoded.without_chain} without a chain of thought, {encoded.too_long} too long"
        )
    if not encoded.examples:
        if encoded.without_chain == len(problems):
            raise UserError(
                "no problem has a chain of thought; init needs data with one (a field cot, steps or reasoning)"
            )
        raise UserError(
            f"no problem fits {schedule.max_prompt} positions of prompt, {schedule.max_chain} of chain and "
            f"{schedule.max_response} of response; choose another --recipe"
        )
    visited = order(len(encoded.examples), f"init {schedule.seed}", 0)[: schedule.walk_steps * schedule.batch]
    return [encoded.examples[number] for number in visited]


def _stage_1(policy: Policy, encoder: Encoder, examples: Sequence[Example], schedule: Schedule) -> list[Part]:
    """Warm start, then the published three steps: encoder alone, decoder alone, both."""
    ratio, of_encoder, of_decoder = schedule.ratio, _trained(encoder.policy, schedule), _trained(policy, schedule)
    of_encoder = [*of_encoder, encoder.compress]

    def warm_up(numbers: Sequence[int], step: int) -> dict[str, float]:
        batch = [examples[number] for number in numbers]
        count = sum(e.latents(ratio) for e in batch)
        parts = cut([len(e.prompt) + len(e.chain) + e.latents(ratio) for e in batch], schedule.micro_tokens)
        smoothing = schedule.smoothing
        (loss,) = backward(
            (warm_up_loss(encoder, policy, [batch[n] for n in part], smoothing) / count,) for part in parts
        )
        return {"loss": loss}

    def build(numbers: Sequence[int], step: int) -> dict[str, float]:
        batch = [examples[number] for number in numbers]
        count = sum(labelled(e, ratio) for e in batch)
        widths = [len(e.prompt) + len(e.chain) + e.latents(ratio) + len(e.response) for e in batch]
        parts = cut(widths, schedule.micro_tokens)
        (loss,) = backward((build_loss(encoder, policy, [batch[n] for n in part]) / count,) for part in parts)
        return {"loss": loss}

    return [
        Part("warm start", schedule.warm_up_steps, schedule.warm_up_lr, of_encoder, warm_up),
        Part("encoder", schedule.encoder_steps, schedule.encoder_lr, of_encoder, build),
        Part("decoder", schedule.decoder_steps, schedule.decoder_lr, of_decoder, build),
        Part("encoder and decoder", schedule.joint_steps, schedule.joint_lr, [*of_encoder, *of_decoder], build),
    ]


def _stage_2(policy: Policy, examples: Sequence[Example], labels: Labels, schedule: Schedule) -> Part:
    """Learn to walk the labelled chains."""
    ratio = schedule.ratio

    def walk(numbers: Sequence[int], step: int) -> dict[str, float]:
        batch = [examples[number] for number in numbers]
        indices, probabilities = labels.of(numbers)
        generator = torch.Generator().manual_seed(noise.row_key(schedule.seed, step, 0))
        noisy = perturb(indices, probabilities, policy.end_id, schedule.noise_scale, generator)
        steps = [e.latents(ratio) for e in batch]
        of_row = list(zip(indices.split(steps), noisy.split(steps), strict=True))
        steps_sum, text_sum = sum(steps), sum(len(e.response) for e in batch)

        def losses(part: list[int]) -> tuple[Tensor, Tensor]:
            rows = [of_row[number] for number in part]
            mixed, targets = torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
            loss = walk_loss(policy, [batch[number] for number in part], mixed, targets, ratio)
            return loss.text / text_sum, loss.chain / steps_sum

        widths = [len(e.prompt) + e.latents(ratio) + len(e.response) for e in batch]
        text, chain = backward(losses(part) for part in cut(widths, schedule.micro_tokens))
        return {"text": text, "chain": chain}

    return Part("walk", schedule.walk_steps, schedule.walk_lr, _trained(policy, schedule), walk)


def _trained(policy: Policy, schedule: Schedule) -> list[nn.Parameter]:
    return list(policy.model.parameters()) if schedule.train_embedding else policy.trainable()


def _label(
    policy: Policy, encoder: Encoder, examples: Sequence[Example], schedule: Schedule, run: Run | None, show: Show
) -> Labels:
    show.stage("labels", len(examples))
    labels = write_labels(encoder, policy, examples, schedule.micro_tokens, lambda done: show.step(done, {}))
    show.step(len(examples), {"entropy": labels.entropy()})
    if run is not None:
        run.event("labels", examples=len(examples), entropy=labels.entropy())
        run.save(LABELS, lambda folder: labels.save(folder / CHAINS))
    return labels


def _load_labels(run: Run | None) -> Labels | None:
    path = None if run is None else run.folder / "checkpoints" / LABELS / CHAINS
    return Labels.load(path) if path is not None and path.exists() else None


class _Work:
    """Fits one part after the other, and knows how many steps of all of them are done."""

    def __init__(
        self,
        policy: Policy,
        examples: Sequence[Example],
        schedule: Schedule,
        run: Run | None,
        show: Show,
        stop: StopRequest,
    ):
        self.policy, self.examples, self.schedule, self.run, self.show = policy, examples, schedule, run, show
        self.stop = stop
        self.done = 0  # steps, of all parts
        self.offset = 0  # steps before the part that is being fitted
        self._modules: dict[str, nn.Module] = {"decoder": policy.model}
        self._optimizer_state: dict[str, Tensor] = {}  # of the part that was interrupted
        self._state: Callable[[], dict[str, Tensor]] = dict

    def fit(self, part: Part, every: int, after: Callable[[int], None]) -> None:
        """The steps of a part that are not done yet; `after(step)` runs at every `every`-th and at the last."""
        start = min(max(self.done - self.offset, 0), part.steps)
        if start == part.steps:
            self.offset += part.steps
            return
        self.show.stage(part.name, part.steps, start)
        only_trained(part.parameters, *self._modules.values())
        optimizer = optimizer_of(part, self.schedule)
        if start:
            optimizer.load_state(self._optimizer_state)
        self._state = optimizer.state
        key = f"{part.name} {self.schedule.seed}"
        for step in range(start, part.steps):
            optimizer.set_lr(learning_rate(step, part.steps, part.lr, self.schedule.lr_warm_up))
            numbers = part.learn(batch_numbers(len(self.examples), self.schedule.batch, key, step), step)
            report = optimizer.step()
            self.done = self.offset + step + 1
            numbers = {**numbers, "grad_norm": report.grad_norm}
            if self.run is not None:
                self.run.log(self.done, part=part.name, **numbers, moved=report.moved, skipped=report.skipped)
            self.show.step(step + 1, numbers)
            if (step + 1) % every == 0 or step + 1 == part.steps:
                after(step + 1)
            elif self.stop:
                self.save_progress(step + 1)
            if self.stop and self.done < self.schedule.stage_1_steps + self.schedule.walk_steps:
                raise KeyboardInterrupt
        self.offset += part.steps

    def drop_encoder(self) -> None:
        self._modules.pop("encoder", None)

    def save_progress(self, step: int) -> None:
        if self.run is None:
            return

        def write(folder: Path) -> None:
            tensors = {f"optimizer.{name}": tensor for name, tensor in self._state().items()}
            for kind, module in self._modules.items():
                tensors |= {f"{kind}.{name}": value.detach() for name, value in module.named_parameters()}
            save_file(tensors, folder / TENSORS)
            (folder / STATE).write_text(json.dumps({"done": self.done}))

        self.run.save(PROGRESS, write)

    @torch.no_grad()
    def resume(self, encoder: Encoder | None) -> None:
        """Take up the saved weights and states, where there are any."""
        if encoder is not None:
            self._modules["encoder"] = encoder
        folder = None if self.run is None else self.run.folder / "checkpoints" / PROGRESS
        if self.run is None or folder is None or not folder.exists():
            return
        self.done = json.loads((folder / STATE).read_text())["done"]
        self.run.rewind(self.done)
        tensors = load_file(folder / TENSORS)
        for kind, module in self._modules.items():
            for name, parameter in module.named_parameters():
                parameter.copy_(tensors[f"{kind}.{name}"])
        prefix = "optimizer."
        self._optimizer_state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


class _Best:
    """Scores the walking model without noise, and keeps the best of what it saw."""

    def __init__(
        self,
        policy: Policy,
        held_out: Sequence[Problem],
        schedule: Schedule,
        grader: Grader,
        run: Run | None,
        show: Show,
    ):
        self.policy, self.held_out, self.schedule = policy, held_out, schedule
        self.grader, self.run, self.show = grader, run, show
        self._score = -1.0
        self._weights: dict[str, Tensor] = {}  # without a run: of the best so far

    def look(self, step: int) -> None:
        schedule = self.schedule
        engine = Engine(self.policy, LatentSettings(schedule.k), TextSettings(), schedule.max_response, schedule.slots)
        answered = evaluate.answer(
            self.policy,
            engine,
            self.held_out,
            self.grader,
            runs=1,
            noise_scale=0.0,
            seed=schedule.seed,
            temperature=engine.text.temperature,
        )
        score = evaluate.summarise(answered)
        self.show.step(step, {"held-out": score.pass_at_1, "length": score.length, "invalid": score.invalid})
        one = answered[step % len(answered)]
        chain, text = readable(self.policy, one.rollout, engine.latent.tau)
        self.show.sample(self.held_out[one.problem].problem, chain, text, one.right)
        if self.run is not None:
            self.run.event("held_out", step=step, **score.as_json("held-out"))
            self.run.save(f"walk-{step:06d}", self.policy.save, score.pass_at_1)
            self.run.prune(keep=(PROGRESS, LABELS))
        elif score.pass_at_1 > self._score:
            self._weights = {name: p.detach().clone() for name, p in self.policy.model.named_parameters()}
        self._score = max(self._score, score.pass_at_1)

    def finish(self) -> Policy:
        """The best checkpoint; what only a resumed run would need is removed."""
        policy = self.policy
        if self.run is not None:
            best = self.run.best()
            assert best is not None
            for name in (PROGRESS, LABELS):
                if (folder := self.run.folder / "checkpoints" / name).exists():
                    remove_folder(folder)
            self.run.finish(best=best.name, score=self.run.best_score())
            return Policy.load(best, str(policy.device), policy.dtype)
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                parameter.copy_(self._weights[name])
        return policy
