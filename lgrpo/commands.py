"""What `init` and `train` do with their options: find model and data, settle the plan, go (`ask.py`: the others)."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lgrpo import console, plan, session
from lgrpo.data import need_chain
from lgrpo.errors import UserError
from lgrpo.initialise import check_examples, initialise
from lgrpo.interrupt import Stopped
from lgrpo.latent_sft.schedule import Schedule, schedule
from lgrpo.overrides import read_overrides
from lgrpo.plan import Setting, TrainSettings
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.runs import Run, checkpoints
from lgrpo.runs.durable import read_json
from lgrpo.train import train as learn
from lgrpo.verify import Verifier


def init(
    base: str | None,
    data: str | None,
    out: Path | None,
    recipe: str | None,
    overrides: Sequence[str],
    steps: int | None,
    lr: float | None,
    limit: int | None,
    overwrite: bool,
    seed: int,
    device: str | None,
) -> Path:
    """Latent-SFT of `base`; returns the run folder."""
    given = read_overrides(overrides, Schedule)
    where = session.pick_device(device)
    policy = session.load(base, where.value)
    if policy.latent:
        raise UserError(f"{base} has a latent chain already; `lgrpo train {base}` goes on from there")
    chosen = plan.choose_recipe(policy.card.recipe, recipe, policy.parameters)
    problems, source = session.problems_for(policy, data, "train", limit)
    problems, without_chain = need_chain(problems)
    lengths = {name: given.pop(name, None) for name in ("max_prompt", "max_response")}
    like, _ = plan.train_settings(chosen, k=policy.card.k, device=where.value, **lengths)
    settings, rows = schedule(
        chosen.value, max_prompt=like.max_prompt, max_response=like.max_response, device=where.value, seed=seed,
        steps=steps, walk_lr=lr, **given,
    )  # fmt: skip
    if settings.k > (tokens := len(policy.tokenizer)):
        raise UserError(f"--set k={settings.k}: {policy.name} has {tokens} tokens to mix")
    problems, too_long = session.fitting(policy, problems, settings.max_prompt, latent=True)
    train_set, held_out, rows = session.set_aside(problems, settings.held_out, seed, rows)
    check_examples(policy, train_set, settings)
    out = out or checkpoints.run_folder(session.RUNS, base or session.TINY, "init")
    same = session.identity(
        settings, base=base or session.TINY, data=source, data_hash=session.data_hash(problems), limit=limit
    )
    options = {
        "base": base, "data": data, "recipe": recipe, "overrides": list(overrides), "steps": steps, "lr": lr,
        "limit": limit, "seed": seed,
    }  # fmt: skip
    facts = {"device": where.value, "options": options}
    with (
        Verifier() as grader,
        Run.start(out, "init", [chosen, where, *rows], identity=same, overwrite=overwrite, **facts) as run,
        console.Show() as show,
    ):
        if run.finished:
            show.say(f"{out} is finished; `lgrpo train {out}` goes on from there")
            return out
        policy.card = replace(policy.card, data=source, rollout={"max_response": settings.max_response})
        show.plan(_plan(chosen, where, source, train_set, held_out, rows))
        _say_left_out(show, without_chain, "have no chain of thought")
        _say_left_out(show, too_long, f"are longer than {settings.max_prompt} positions (max_prompt)")
        try:
            initialise(policy, train_set, held_out, settings, grader, run, show)
        except KeyboardInterrupt:
            show.say(f"stopped; the same command goes on from where {out} stands")
            raise Stopped from None
        show.say(f"saved {run.best()}; next: lgrpo train {out}")
    return out


def train(checkpoint: str | None, **options: Any) -> Path:
    """Latent-GRPO (or GRPO with --explicit) of `checkpoint`; returns the run folder.

    A run of `train`, named or the newest here, goes on; one of `init` is finished first where it was interrupted.
    """
    if checkpoint is None and not options["explicit"]:
        newest = checkpoints.newest_run(session.RUNS)
        checkpoint = str(newest) if newest else None
    elif session.is_tiny(checkpoint):
        checkpoint = None
    record = read_json(Path(checkpoint) / "run.json") if checkpoint else None
    if checkpoint is None or not record or not record.get("options"):
        return _train(checkpoint=checkpoint, **options)
    if record["command"] == "train" and options["out"] is None:
        return _train(**_continued(Path(checkpoint), record, options))
    if record["command"] == "init" and not record["finished"]:
        print(f"{checkpoint} is not finished: going on with `lgrpo init` first", file=sys.stderr)
        init(**record["options"], out=Path(checkpoint), overwrite=False, device=options["device"])
    return _train(checkpoint=checkpoint, **options)


def _continued(folder: Path, record: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Options of a run of `train`, with what was given now on top."""
    given = {name: value for name, value in options.items() if value not in (None, (), False)}
    merged = {**options, **record["options"], **given, "out": folder}
    done = record["settings"]["steps"]["value"]
    if record.get("finished") and (merged["steps"] or 0) <= done and not merged["overwrite"]:
        raise UserError(f"{folder} has finished its {done} steps; `lgrpo eval` scores it, --steps N trains on")
    return merged


def _train(
    checkpoint: str | None,
    data: str | None,
    out: Path | None,
    recipe: str | None,
    overrides: Sequence[str],
    steps: int | None,
    lr: float | None,
    without: Sequence[str],
    surrogate: str | None,
    explicit: bool,
    limit: int | None,
    overwrite: bool,
    seed: int,
    device: str | None,
) -> Path:
    given = read_overrides(overrides, TrainSettings, without=["k"])
    where = session.pick_device(device)
    source = checkpoints.resolve_checkpoint(checkpoint) if checkpoint else None
    policy = session.load(source, where.value)
    name = checkpoint or session.TINY
    if explicit and policy.latent:
        raise UserError(f"{name} has a latent chain; --explicit needs a model that writes its chain")
    chosen = plan.choose_recipe(policy.card.recipe, recipe, policy.parameters)
    problems, data_source = session.problems_for(policy, data, "train", limit)
    settings, rows = plan.train_settings(
        chosen, k=policy.card.k, device=where.value, seed=seed, explicit=explicit, without=without,
        steps=steps, lr=lr, surrogate=surrogate, **given,
    )  # fmt: skip
    if not explicit and not session.has_latent_chain(policy, source, problems, settings):
        print(f"{name} has no latent chain yet: running `lgrpo init` first", file=sys.stderr)
        del policy  # `init` loads its own, and a GPU may not hold two beside the optimizer
        base = init(checkpoint, data, None, recipe, (), None, None, limit, False, seed, device)
        return _train(
            str(base), data, out, recipe, overrides, steps, lr, without, surrogate, explicit, limit, overwrite, seed,
            device,
        )  # fmt: skip
    problems, too_long = session.fitting(policy, problems, settings.max_prompt, not explicit)
    train_set, held_out, plan_rows = session.set_aside(problems, settings.held_out, seed, rows)
    out = out or checkpoints.run_folder(session.RUNS, name, "explicit-grpo" if explicit else "grpo")
    same = session.identity(
        settings,
        checkpoint=source or session.TINY,
        data=data_source,
        data_hash=session.data_hash(problems),
        limit=limit,
    )
    options = {
        "checkpoint": source, "data": data, "recipe": recipe, "overrides": list(overrides), "steps": steps, "lr": lr,
        "without": list(without), "surrogate": surrogate, "explicit": explicit, "limit": limit, "seed": seed,
        "device": device,
    }  # fmt: skip
    facts = {"device": where.value, "options": options}
    with (
        Verifier() as grader,
        Run.start(out, "train", [where, *plan_rows], identity=same, overwrite=overwrite, **facts) as run,
        console.Show() as show,
    ):
        initial = None
        if run.resumed and (latest := run.latest()):
            initial = policy if settings.kl else None
            policy = Policy.load(latest, where.value)
            show.say(f"going on with {out} from {latest.name}")
        elif not explicit and not policy.latent:
            show.say(f"{name} has no lgrpo.json, but answers after a latent chain: it is trained as it is")
        policy.card = replace(policy.card, data=data_source)
        show.plan(_plan(chosen, where, data_source, train_set, held_out, plan_rows))
        _say_left_out(show, too_long, f"are longer than {settings.max_prompt} positions (max_prompt)")
        if (length := settings.max_prompt + settings.max_response) > (room := session.positions_of(policy)):
            show.warn(f"{length} positions of prompt and response are more than the {room:g} {name} was made for")
        learn(policy, train_set, held_out, settings, grader, run, show, initial)
        if grader.failures:
            show.warn(f"the verifier failed on {grader.failures} answers: {dict(grader.reasons)}")
        again = "" if run.finished else f"stopped; `lgrpo train {out}` goes on from here. "
        show.say(f"{again}best checkpoint {run.best()}; `lgrpo eval {out}` scores it")
        if not run.finished:
            raise Stopped
    return out


def _plan(
    recipe: Setting,
    device: Setting,
    source: str,
    train_set: Sequence[Problem],
    held_out: Sequence[Problem],
    rows: Sequence[tuple[str, Any, str]],
) -> list[Setting]:
    data = Setting("data", source, f"{len(train_set)} problems to train on, {len(held_out)} held out")
    return [recipe, device, data, *(Setting(*row) for row in rows if row[0] != "recipe")]


def _say_left_out(show: console.Show, count: int, why: str) -> None:
    if count:
        show.say(f"{count} problems {why} and are left out")
