"""Latent-GRPO on one device (docs/method.md, 2 to 5): the loop, and nothing else.

1. Roll out groups until the batch is full of prompts whose rewards differ.
2. Turn rewards into advantages, and these into optimiser steps.
3. Every few steps score the policy without noise on a held-out slice of the training data, and save it.

The state of a run is the checkpoint's weights, the optimizer's states and three numbers (`Progress`):
all randomness is derived from them and the seed, so a run that goes on is the run that never stopped.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors.torch import load_file, save_file

from lgrpo import evaluate
from lgrpo.budget import fewer_rollouts, reporter, unrepeatable
from lgrpo.divergence import IN_A_ROW, diverged, not_finite
from lgrpo.engine import Engine
from lgrpo.groups import Drawn, Grader, Group, Sampler
from lgrpo.interrupt import StopRequest
from lgrpo.learner import Learner
from lgrpo.memory.device import now_on
from lgrpo.memory.trial import announce, trial
from lgrpo.options import TrainOptions, command_line
from lgrpo.plan import TrainSettings
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.reading import readable
from lgrpo.runs import Run
from lgrpo.runs.checkpoints import latest_saved
from lgrpo.runs.contents import compare
from lgrpo.runs.durable import read_json
from lgrpo.screen import Show
from lgrpo.verify import boxed
from lgrpo.watch import REPORT_EVERY, Watch

STATE, TENSORS = "train_state.json", "train_state.safetensors"


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int = 0  # batches learnt
    cursor: int = 0  # prompts drawn
    skipped: int = 0  # optimiser steps left out one after the other


def train(
    policy: Policy,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
    settings: TrainSettings,
    grader: Grader,
    run: Run,
    show: Show,
    initial: Policy | None = None,
    asked: TrainOptions | None = None,
) -> Path:
    """Train `policy` in place; returns the best checkpoint's folder.

    `problems` fit the recipe's longest prompt. When `run` is resumed, `policy` must be its latest checkpoint and
    `initial` the policy the run began with, which the KL refers to. `asked` is what the command was given, which a run
    that diverges is advised to begin again with.
    """
    asked = asked or TrainOptions(explicit=settings.explicit)
    mode = "explicit" if settings.explicit else "latent"
    policy.card = replace(policy.card, mode=mode, recipe=settings.recipe, k=settings.k, rollout=settings.rollout)
    how = settings.latent_settings, settings.text_settings, settings.max_response, settings.slots
    engine = Engine(policy, *how, fewer_rollouts(run, show))
    sampler = Sampler(policy, engine, problems, grader, settings, show.phase)
    watch = Watch(run, show)
    learner = Learner(policy, settings, initial, reporter(run, show), unrepeatable(run, show))
    progress = _resume(run, learner)
    if run.finished and progress.step < settings.steps:
        run.update(finished=None)
    announce(trial(policy, engine, learner, settings), settings.slots, run, show)
    watch.stage("train", settings.steps, progress.step)
    with StopRequest(show.say) as stop:
        if progress.step == 0 and run.latest() is None:
            show.phase(f"scoring the starting point on {len(held_out)} held-out problems")
            _score_and_save(policy, engine, held_out, grader, settings, learner, progress, watch, run)
        while progress.step < settings.steps and not stop:
            drawn = sampler.collect(progress.cursor)
            if not settings.keep_cache:
                engine.release()
            show.phase("learning")
            began = time.monotonic()
            numbers: dict[str, float] = {}
            if all(rollout.broken for group in drawn.seen for rollout in group.rollouts):
                learner.optimizer.leave_out()  # nothing can be learnt from weights without a logit that is a number
                numbers["skipped"] = 1.0
            elif drawn.kept:
                numbers = learner.learn(drawn.kept)
            progress = Progress(progress.step + 1, drawn.cursor, learner.optimizer.skipped)
            numbers = {**_seen(drawn, settings), **numbers, "update_s": time.monotonic() - began}
            watch.step(progress.step, {**numbers, **now_on(policy.device)})
            _say(policy, settings, progress, drawn, show)
            _check(policy, settings, progress, numbers, watch, run, asked)
            if progress.step % settings.eval_every == 0 or progress.step == settings.steps:
                show.phase(f"scoring {len(held_out)} held-out problems")
                _score_and_save(policy, engine, held_out, grader, settings, learner, progress, watch, run)
            elif stop:  # without a score: stopping must not give the choice of the best another candidate
                _save(policy, learner, progress, run, None)
    if progress.step >= settings.steps:
        run.prune()  # where the run was killed behind its last save
        run.finish()
    watch.report()
    best = run.best()
    assert best is not None
    return best


def _seen(drawn: Drawn, settings: TrainSettings) -> dict[str, float]:
    """Numbers of one draw (metrics.py)."""
    rollouts = [rollout for group in drawn.seen for rollout in group.rollouts]
    texts = [text for group in drawn.seen for text in group.texts]
    positions = sum(rollout.length for rollout in rollouts)
    return {
        "reward": fmean(reward for group in drawn.seen for reward in group.rewards),
        "signal": sum(group.has_signal(settings) for group in drawn.seen) / len(drawn.seen),
        "groups": len(drawn.kept),
        "drawn": len(drawn.seen),
        "latent": fmean(rollout.latent_length for rollout in rollouts),
        "explicit": fmean(rollout.explicit_length for rollout in rollouts),
        "invalid": fmean(not rollout.valid for rollout in rollouts),
        "boxed": fmean(boxed(text) is not None for text in texts),
        "broken": sum(rollout.broken for rollout in rollouts),
        "unchecked": drawn.unchecked / len(rollouts),
        "positions": positions,
        "rollout_s": drawn.rollout_s,
        "verify_s": drawn.verify_s,
        "tokens_per_s": positions / max(drawn.rollout_s, 1e-9),
    }


def _say(policy: Policy, settings: TrainSettings, progress: Progress, drawn: Drawn, show: Show) -> None:
    """What a step lacked, and one of its answers."""
    if not drawn.kept:
        show.warn(f"step {progress.step}: no group had signal in {len(drawn.seen)} prompts; nothing was learnt")
    elif len(drawn.kept) < settings.batch:
        show.warn(f"step {progress.step}: only {len(drawn.kept)} of {settings.batch} groups had signal")
    if broken := sum(rollout.broken for group in drawn.seen for rollout in group.rollouts):
        show.warn(f"step {progress.step}: {broken} rollouts ended where the model's logits were no numbers")
    group: Group = (drawn.kept or drawn.seen)[-1]
    chain, answer = readable(policy, group.rollouts[0], settings.tau)
    problem, right = group.problem, group.rewards[0] > 0
    show.sample(problem.problem, chain, answer, right, problem.answer)


def _check(
    policy: Policy,
    settings: TrainSettings,
    progress: Progress,
    numbers: Mapping[str, Any],
    watch: Watch,
    run: Run,
    asked: TrainOptions,
) -> None:
    """Tell of optimiser steps that were left out. Raises UserError where too many were, one after the other."""
    if left_out := int(numbers.get("skipped") or 0):
        watch.show.warn(f"step {progress.step}: {left_out} optimiser steps left out: loss or gradient not finite")
        run.event("skipped", step=progress.step, count=left_out)
    if progress.skipped >= IN_A_ROW:
        broken = not_finite(policy.model.named_parameters())
        best, good = run.best(), _last_good(run) if broken else run.latest()  # a step left out changes no weight
        again = replace(asked, checkpoint=str(good), lr=settings.lr / 2, out=Path(f"{run.folder}-2"), overwrite=False)
        error = diverged(
            f"step {progress.step}",
            broken,
            f"start again from the last good checkpoint with a lower rate, `{command_line(again)}`; "
            f"the best is {best and best.name}",
        )
        run.event("diverged", step=progress.step, what=str(error))
        watch.report()
        raise error


def _last_good(run: Run) -> Path | None:
    """The newest checkpoint that was saved behind an optimiser step which was not left out; else the best."""
    for folder in reversed(run.checkpoints()):
        if (read_json(folder / STATE) or {}).get("skipped") == 0:
            return folder
    return run.best()


def _score_and_save(
    policy: Policy,
    engine: Engine,
    held_out: Sequence[Problem],
    grader: Grader,
    settings: TrainSettings,
    learner: Learner,
    progress: Progress,
    watch: Watch,
    run: Run,
) -> None:
    """Pass@1 without noise on the held-out slice; the checkpoint carries it as its score."""
    answered = evaluate.answer(
        policy,
        engine,
        held_out,
        grader,
        runs=1,
        noise_scale=0.0,
        seed=settings.seed,
        temperature=settings.temperature,
    )
    score = evaluate.summarise(answered)
    watch.score(progress.step, score, policy, answered, held_out, settings.tau)
    _save(policy, learner, progress, run, score.pass_at_1)
    watch.report(every=REPORT_EVERY)


def _save(policy: Policy, learner: Learner, progress: Progress, run: Run, score: float | None) -> None:
    """A checkpoint from which the run goes on as if it had never stopped."""

    def write(folder: Path) -> None:
        policy.save(folder)
        tensors = learner.optimizer.state()
        save_file(tensors, folder / TENSORS)
        compare([folder / TENSORS], tensors)
        (folder / STATE).write_text(json.dumps(asdict(progress)), encoding="utf-8")

    run.save(f"step-{progress.step:06d}", write, score)
    run.prune()


def steps_taken(folder: Path) -> int:
    """Of the run in a folder, by its latest checkpoint; 0 where there is none, or it does not say."""
    latest = latest_saved(folder)
    taken = (read_json(latest.path / STATE) or {}).get("step") if latest else 0
    return taken if type(taken) is int else 0


def _resume(run: Run, learner: Learner) -> Progress:
    """The state in the run's latest checkpoint, or the start."""
    latest = run.latest()
    if latest is None:
        run.rewind(0)  # of a run whose every checkpoint was damaged
        return Progress()
    state: dict[str, Any] = json.loads((latest / STATE).read_text(encoding="utf-8"))
    learner.optimizer.load_state(load_file(latest / TENSORS))
    run.rewind(state["step"])
    progress = replace(Progress(), **state)
    learner.optimizer.skipped = progress.skipped
    return progress
