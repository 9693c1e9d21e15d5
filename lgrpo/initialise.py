"""Latent-SFT on one device (docs/method.md, 6): a language model gets its first latent chain.

1. Build the chain: an encoder learns to compress chains of thought into superpositions, the model to read them.
2. Label: the encoder writes the latent chain of every example, and is dropped.
3. Walk alone: the model learns to take these chains itself. Every few hundred steps it is scored without noise on a
   held-out slice of the training data; the best checkpoint is the result.

A run can stop at any step and go on: weights, optimizer states and the number of steps are all its state, and batches
and noise follow from the seed and the step.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lgrpo import evaluate
from lgrpo.budget import Budget, fewer_rollouts, reporter, unrepeatable
from lgrpo.engine import Engine
from lgrpo.engine.decode import TextSettings
from lgrpo.errors import UserError
from lgrpo.groups import Grader
from lgrpo.interrupt import StopRequest
from lgrpo.latent_sft.build import build_parts
from lgrpo.latent_sft.encoder import Encoder
from lgrpo.latent_sft.examples import Encoded, Example, encode, order
from lgrpo.latent_sft.labels import Labels, write_labels
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.latent_sft.walk import walk_part
from lgrpo.memory.latent_sft_trial import trial
from lgrpo.memory.trial import announce
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.reading import readable
from lgrpo.runs import Run
from lgrpo.runs.durable import remove_folder
from lgrpo.screen import Show
from lgrpo.stages import PROGRESS, Stages
from lgrpo.superposition import LatentSettings
from lgrpo.watch import REPORT_EVERY, Watch

LABELS, CHAINS = "labels", "labels.safetensors"  # checkpoint that is there until the run is finished, and its file


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

    `run` may hold the same run's progress, and `policy` is the base model in that case too. Without a run nothing is
    saved. Raises UserError when no problem has a chain that fits, and KeyboardInterrupt, with all progress saved, when
    asked to stop.
    """
    examples = _examples(policy, problems, schedule, show)
    with StopRequest(show.say) as stop:
        watch = Watch(run, show)
        stages = Stages({"decoder": policy.model}, len(examples), schedule, watch, stop)
        # Weights that are older than the labels, since newer ones were damaged, must not be taught them.
        labels = _load_labels(run) if stages.saved_steps() >= schedule.stage_1_steps else None
        budget = Budget(schedule.micro_tokens, reporter(run, show), unrepeatable(run, show))
        how = LatentSettings(schedule.k), TextSettings(), schedule.max_response, schedule.slots
        engine = Engine(policy, *how, fewer_rollouts(run, show))  # answers the held-out problems
        if (done := stages.saved_steps()) < schedule.steps:
            tried = trial(policy, engine, schedule, budget, done, full=policy.device.type == "cuda")
            announce(tried, schedule.slots, run, show)
        if labels is None:
            encoder = Encoder(policy, schedule.ratio, schedule.k, schedule.output_scale)
            stages.modules["encoder"] = encoder
            stages.resume()
            for part in build_parts(policy, encoder, examples, schedule, budget):
                stages.fit(part, schedule.save_every, stages.save)
            labels = _label(policy, encoder, examples, budget, run, show, stop)
            del stages.modules["encoder"], encoder, part
        else:
            stages.resume()
            stages.skip(schedule.stage_1_steps)
        policy.card = replace(policy.card, mode="latent", recipe=schedule.recipe, k=schedule.k)
        best = _Best(policy, engine, held_out, schedule, grader, watch)

        def score_and_save(step: int) -> None:
            best.look(step)
            stages.save(step)
            watch.report(every=REPORT_EVERY)

        stages.fit(walk_part(policy, examples, labels, schedule, budget), schedule.eval_every, score_and_save)
    chosen = best.finish()
    watch.report()
    return chosen


def check_examples(policy: Policy, problems: Sequence[Problem], schedule: Schedule) -> None:
    """Raises UserError where `initialise` would find nothing to learn from; one good problem is enough to know."""
    if not any(_encode(policy, [problem], schedule).examples for problem in problems):
        raise _nothing_fits(_encode(policy, problems, schedule), schedule)


def _encode(policy: Policy, problems: Sequence[Problem], schedule: Schedule) -> Encoded:
    return encode(policy, problems, schedule.ratio, schedule.max_prompt, schedule.max_chain, schedule.max_response)


def _examples(policy: Policy, problems: Sequence[Problem], schedule: Schedule, show: Show) -> list[Example]:
    """As many examples as stage 2 will visit, in a seeded choice."""
    encoded = _encode(policy, problems, schedule)
    if encoded.without_chain or encoded.too_long:
        show.say(
            f"{len(encoded.examples)} of {len(problems)} problems can be learnt from; left out: "
            f"{encoded.without_chain} without a chain of thought, {encoded.too_long} too long"
        )
    if not encoded.examples:
        raise _nothing_fits(encoded, schedule)
    visited = order(len(encoded.examples), f"init {schedule.seed}", 0)[: schedule.walk_steps * schedule.batch]
    return [encoded.examples[number] for number in visited]


def _nothing_fits(encoded: Encoded, schedule: Schedule) -> UserError:
    if not encoded.too_long:
        return UserError(
            "no problem has a chain of thought; init needs data with one (a field cot, steps or reasoning)"
        )
    return UserError(
        f"no problem fits {schedule.max_prompt} positions of prompt, {schedule.max_chain} of chain and "
        f"{schedule.max_response} of response; choose another --recipe"
    )


def _label(
    policy: Policy,
    encoder: Encoder,
    examples: Sequence[Example],
    budget: Budget,
    run: Run | None,
    show: Show,
    stop: StopRequest,
) -> Labels:
    """Every example's chain, kept in the run."""

    def on_part(done: int) -> None:
        show.step(done, {})
        if stop:
            raise KeyboardInterrupt

    show.stage("labels", len(examples))
    labels = write_labels(encoder, policy, examples, budget, on_part)
    show.step(len(examples), {"entropy": labels.entropy()})
    if run is not None:
        run.event("labels", examples=len(examples), entropy=labels.entropy())
        run.save(LABELS, lambda folder: labels.save(folder / CHAINS))
    return labels


def drop_progress(run: Run) -> None:
    """Remove what only a run that is not finished needs."""
    for folder in run.checkpoints():
        if folder.name.startswith((PROGRESS, LABELS)):
            remove_folder(folder)


def _load_labels(run: Run | None) -> Labels | None:
    path = None if run is None else run.folder / "checkpoints" / LABELS / CHAINS
    return Labels.load(path) if path is not None and path.exists() else None


class _Best:
    """Scores the walking model without noise, and keeps the best of what it saw."""

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        held_out: Sequence[Problem],
        schedule: Schedule,
        grader: Grader,
        watch: Watch,
    ):
        self.policy, self.engine, self.held_out, self.schedule = policy, engine, held_out, schedule
        self.grader, self.watch, self.run = grader, watch, watch.run
        self._score = -1.0
        self._weights: dict[str, Tensor] = {}  # without a run: of the best so far

    def look(self, step: int) -> None:
        schedule, engine, show = self.schedule, self.engine, self.watch.show
        show.phase(f"scoring {len(self.held_out)} held-out problems")
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
        engine.release()  # its cache must not stay beside the next steps
        score = evaluate.summarise(answered)
        self.watch.score(step, score, self.policy, answered, self.held_out, engine.latent.tau)
        one = answered[step % len(answered)]
        chain, text = readable(self.policy, one.rollout, engine.latent.tau)
        problem = self.held_out[one.problem]
        show.sample(problem.problem, chain, text, one.right, problem.answer)
        if self.run is not None:
            self.run.save(f"walk-{step:06d}", self.policy.save, score.pass_at_1)
            self.run.prune()
        elif score.pass_at_1 > self._score:
            self._weights = {name: p.detach().clone() for name, p in self.policy.model.named_parameters()}
        self._score = max(self._score, score.pass_at_1)

    def finish(self) -> Policy:
        """The best checkpoint, and the end of the run."""
        policy = self.policy
        if self.run is not None:
            best = self.run.best()
            assert best is not None
            self.run.finish(
                best=best.name, score=self.run.best_score()
            )  # first: without its progress it would begin anew
            drop_progress(self.run)
            return Policy.load(best, str(policy.device), policy.dtype)
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                parameter.copy_(self._weights[name])
        return policy
