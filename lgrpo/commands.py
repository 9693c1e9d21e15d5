"""What `init` and `train` do with their options: find model and data, settle the plan, go."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lgrpo import context, plan, session, trackers
from lgrpo.data import need_chain
from lgrpo.errors import UserError
from lgrpo.estimate import init_time, train_time
from lgrpo.initialise import check_examples, drop_progress, initialise
from lgrpo.interrupt import Stopped
from lgrpo.latent_sft.schedule import Schedule, schedule
from lgrpo.memory import disk
from lgrpo.memory import latent_sft as init_memory
from lgrpo.memory import reinforcement as memory
from lgrpo.memory.resumed import as_begun, cut_of
from lgrpo.options import InitOptions, Options, TrainOptions, continued, has_more_steps, recorded
from lgrpo.overrides import read_overrides
from lgrpo.plan import Setting, TrainSettings
from lgrpo.policy import Policy, trained_on
from lgrpo.problems import Problem, copies
from lgrpo.report import PAGE
from lgrpo.runs import Run, checkpoints
from lgrpo.runs.durable import read_json
from lgrpo.runs.guard import check_folder, refuse, unfinished
from lgrpo.screen import Show
from lgrpo.starting import Start, start_of
from lgrpo.train import steps_taken
from lgrpo.train import train as learn
from lgrpo.verify import Verifier


def init(asked: InitOptions, anew: bool = False) -> Path:
    """Latent-SFT of a base model; returns the run folder. anew: not the run that is there, which it may replace."""
    chosen = read_overrides(asked.overrides, Schedule)
    trackers.check(asked.log_to)
    where = session.pick_device(asked.device)
    name = asked.base or session.TINY
    out = asked.out or checkpoints.run_folder(session.RUNS, name, "init")
    check_folder(out)
    start = start_of("init", asked.base, out, asked.overwrite, anew)
    policy = session.load(asked.base, where.value, start.model)
    if policy.latent:
        raise UserError(f"{name} has a latent chain already; `lgrpo train {name}` goes on from there")
    recipe = plan.choose_recipe(policy.card.recipe, asked.recipe, policy.parameters)
    lengths: dict[str, Any] = {length: chosen.get(length) for length in ("max_prompt", "max_response")}
    like, _ = plan.train_settings(recipe, k=policy.card.k, **lengths)
    rest = {setting: value for setting, value in chosen.items() if setting not in lengths}
    settings, rows = schedule(
        recipe.value, max_prompt=like.max_prompt, max_response=like.max_response, device=where.value,
        seed=asked.seed or 0, steps=asked.steps, walk_lr=asked.lr, **rest,
    )  # fmt: skip
    if settings.k > (tokens := len(policy.tokenizer)):
        raise UserError(f"--set k={settings.k}: {policy.name} has {tokens} tokens to mix")
    settings, rows = context.settle(policy, settings, rows, chosen)
    settings, rows, begun = as_begun(None if anew else out, "init", settings, rows, chosen)
    short = None
    try:
        settings, rows = init_memory.settle(policy, settings, rows, {*chosen, *(begun.keys() & {"joint_steps"})})
    except UserError as error:
        if not begun:
            raise
        short = error  # of the run that is there: whether it is this one is known below
    problems, source = session.problems_for(policy, asked.data, "train", settings.limit)
    problems, without_chain = need_chain(problems)
    problems, unchecked = session.checkable(problems)
    problems, too_long = session.fitting(policy, problems, settings.max_prompt, latent=True)
    _, held_out, rows = session.set_aside(problems, settings.held_out, settings.seed, rows)
    # What `train` will hold out, these among them, is not learnt here: its scores would be of known problems.
    train_set, _, _ = session.set_aside(problems, max(settings.held_out, like.held_out), settings.seed, rows)
    check_examples(policy, train_set, settings)
    rows = [*rows, init_time(policy, settings, train_set), disk.check_room(out, disk.init_bytes(policy))]
    settled = _plan(recipe, where, policy, source, train_set, held_out, rows)
    same = session.identity(
        settings, problems, held_out, base=start.name, base_hash=start.hash(policy), data=source
    )  # fmt: skip
    if (start.moved or begun) and asked.overwrite and not unfinished(out, "init", same):
        del policy
        return init(asked, anew=True)
    if short and unfinished(out, "init", same):
        raise UserError(f"{short}; or free memory, and the same command goes on from where {out} stands")
    facts = {**session.place_of(policy, where.value), "options": _recorded(asked)}
    facts["cut"] = cut_of(settings, begun)
    with (
        Verifier() as grader,
        Run.start(out, "init", settled, identity=same, overwrite=asked.overwrite, **facts) as run,
        Show() as show,
        trackers.tracking(run, asked.log_to, show.say),
    ):
        if run.finished:
            drop_progress(run)  # where the run was killed before it had
            show.say(f"{out} is finished; `lgrpo train {out}` goes on from there")
            return out
        policy.card = replace(policy.card, data=source, rollout={"max_response": settings.max_response})
        policy.trained_on = trained_on.joined(policy.trained_on, train_set)
        _say_where(show, run, start)
        show.plan(settled)
        _say_copies(show, problems)
        _say_left_out(show, without_chain, "have no chain of thought")
        _say_left_out(show, unchecked, "have an answer that cannot be checked")
        _say_left_out(show, too_long, f"are longer than {settings.max_prompt} positions (max_prompt)")
        try:
            initialise(policy, train_set, held_out, settings, grader, run, show)
        except KeyboardInterrupt:
            show.say(f"stopped; the same command goes on from where {out} stands")
            raise Stopped from None
        finally:
            if trouble := grader.trouble():
                show.warn(trouble)
        show.say(f"saved {run.best()}, report {out / PAGE}; next: lgrpo train {out}")
    return out


def train(asked: TrainOptions) -> Path:
    """Latent-GRPO (or GRPO with --explicit) of a checkpoint; returns the run folder.

    A run of `train`, named or the newest here, goes on; one of `init` is finished first where it was interrupted.
    """
    if asked.checkpoint is None and not asked.explicit:
        newest = checkpoints.newest_run(session.RUNS)
        asked = replace(asked, checkpoint=str(newest) if newest else None)
    elif session.is_tiny(asked.checkpoint):
        asked = replace(asked, checkpoint=None)
    if asked.checkpoint is None:
        return _train(asked)
    folder = Path(asked.checkpoint)
    began = recorded(folder)
    if isinstance(began, TrainOptions) and asked.out is None:
        asked = continued(folder, began, asked)
    elif isinstance(began, InitOptions) and not (read_json(folder / "run.json") or {}).get("finished"):
        session.on_stderr(f"{folder} is not finished: going on with `lgrpo init` first")
        init(replace(began, out=folder, device=asked.device or began.device))
    return _train(asked)


def _train(asked: TrainOptions, anew: bool = False) -> Path:
    """anew: not the run that is there, which it may replace."""
    chosen = read_overrides(asked.overrides, TrainSettings, without=["k"])
    trackers.check(asked.log_to)
    where = session.pick_device(asked.device)
    name = asked.checkpoint or session.TINY
    out = asked.out or checkpoints.run_folder(session.RUNS, name, "explicit-grpo" if asked.explicit else "grpo")
    check_folder(out)  # before an `init` that it may take first
    start = start_of("train", asked.checkpoint, out, asked.overwrite, anew)
    source = start.name if asked.checkpoint else None
    policy = session.load(source, where.value, start.model)
    if asked.explicit and policy.latent:
        raise UserError(f"{name} has a latent chain; --explicit needs a model that writes its chain")
    recipe = plan.choose_recipe(policy.card.recipe, asked.recipe, policy.parameters)
    settings, rows = plan.train_settings(
        recipe, k=policy.card.k, seed=asked.seed or 0, explicit=asked.explicit,
        without=asked.without, steps=asked.steps, lr=asked.lr, surrogate=asked.surrogate, **chosen,
    )  # fmt: skip
    settings, rows = context.settle(policy, settings, rows, chosen)
    settings, rows, begun = as_begun(None if anew else out, "train", settings, rows, chosen)
    settings, rows = memory.settle(policy, settings, rows, chosen)
    if start.gone and settings.kl:
        raise UserError(f"{start.lost}, and kl compares with its weights; {start.remedy}")
    problems, data = session.problems_for(policy, asked.data, "train", settings.limit)
    if not asked.explicit and not session.has_latent_chain(policy, source and start.model, problems, settings):
        session.on_stderr(f"{name} has no latent chain yet: running `lgrpo init` first")
        del policy  # `init` loads its own, and a GPU may not hold two beside the optimizer
        base = init(_init_first(asked))
        return _train(replace(asked, checkpoint=str(base)))
    problems, unchecked = session.checkable(problems)
    problems, too_long = session.fitting(policy, problems, settings.max_prompt, not asked.explicit)
    train_set, held_out, plan_rows = session.set_aside(problems, settings.held_out, settings.seed, rows)
    need = disk.train_bytes(policy)
    plan_rows = [*plan_rows, train_time(policy, settings, train_set), disk.check_room(out, need)]
    settled = _plan(recipe, where, policy, data, train_set, held_out, plan_rows)
    same = session.identity(
        settings, problems, held_out, checkpoint=start.name, checkpoint_hash=start.hash(policy), data=data
    )  # fmt: skip
    replaced = asked.overwrite and not unfinished(out, "train", same)
    if (start.moved or begun) and replaced:
        del policy
        return _train(asked, anew=True)
    if not replaced and refuse(out, "train", same, overwrite=False) and (taken := steps_taken(out)) > settings.steps:
        raise UserError(f"{out} has taken {taken} steps already; give --steps with no fewer, or another --out")
    facts = {**session.place_of(policy, where.value), "options": _recorded(replace(asked, checkpoint=source))}
    facts["cut"] = cut_of(settings, begun)
    if has_more_steps(out, settings.steps):
        facts["finished"] = None  # with the new number of steps, in one write: a kill must not leave it finished early
    with (
        Verifier() as grader,
        Run.start(out, "train", settled, identity=same, overwrite=asked.overwrite, **facts) as run,
        Show() as show,
        trackers.tracking(run, asked.log_to, show.say),
    ):
        initial = None
        _say_where(show, run, start)
        if start.gone and run.latest() is None:
            raise UserError(f"{start.lost}, and no other checkpoint is undamaged; {start.remedy}")
        if run.resumed and (latest := run.latest()):
            initial = policy if settings.kl else None
            policy.model.to("cpu")  # a device need not hold two models
            policy = Policy.load(latest, where.value)
            show.say(f"going on with {out} from {latest.name}")
        elif not asked.explicit and not policy.latent:
            show.say(f"{name} has no lgrpo.json, but answers after a latent chain: it is trained as it is")
        policy.card = replace(policy.card, data=data)
        if not run.resumed and (known := trained_on.count(policy.trained_on, held_out)):
            show.warn(
                f"{known} of the {len(held_out)} held-out problems are among those {name} was trained on, and their "
                "scores tell less; give other --data, or the --seed it was trained with"
            )
        policy.trained_on = trained_on.joined(policy.trained_on, train_set)
        show.plan(settled)
        _say_copies(show, problems)
        _say_left_out(show, unchecked, "have an answer that cannot be checked")
        _say_left_out(show, too_long, f"are longer than {settings.max_prompt} positions (max_prompt)")
        learn(policy, train_set, held_out, settings, grader, run, show, initial, asked)
        if trouble := grader.trouble():
            show.warn(trouble)
        again = "" if run.finished else f"stopped; `lgrpo train {out}` goes on from here. "
        show.say(f"{again}best checkpoint {run.best()}, report {out / PAGE}; `lgrpo eval {out}` scores it")
        if not run.finished:
            raise Stopped
    return out


def _init_first(asked: TrainOptions) -> InitOptions:
    """The `init` before a `train`: the same data and lengths. Rates and steps are the recipe's, not `train`'s."""
    both = {"limit", "max_prompt", "max_response"}
    overrides = [pair for pair in asked.overrides if pair.partition("=")[0].strip() in both]
    same = {name: getattr(asked, name) for name in ("data", "recipe", "seed", "device", "log_to")}
    return InitOptions(base=asked.checkpoint, overrides=overrides, **same)


def _recorded(asked: Options) -> dict[str, Any]:
    """What run.json keeps, so that a run named alone goes on as it began."""
    return {name: value for name, value in asdict(asked).items() if name not in ("out", "overwrite")}


def _plan(
    recipe: Setting,
    device: Setting,
    policy: Policy,
    source: str,
    train_set: Sequence[Problem],
    held_out: Sequence[Problem],
    rows: Sequence[Setting],
) -> list[Setting]:
    """Every setting with its reason, as it is shown and kept with the run."""
    why = "a CPU's" if policy.device.type == "cpu" else "a GPU's; each weight's exact value is kept beside it"
    dtype = Setting("dtype", str(policy.dtype).removeprefix("torch."), why)
    data = Setting("data", source, f"{len(train_set)} problems to train on, {len(held_out)} held out")
    return [recipe, device, dtype, data, *(row for row in rows if row.name != "recipe")]


def _say_where(show: Show, run: Run, start: Start) -> None:
    if start.moved:
        show.say(start.moved)
    if run.elsewhere:
        show.warn(f"the run was made on {run.elsewhere} so far; its numbers are rounded in another way from here on")
    for what in run.damaged:
        show.warn(f"{what}; the run goes on from the one before it")


def _say_left_out(show: Show, count: int, why: str) -> None:
    if count:
        show.say(f"{count} problems {why} and are left out")


def _say_copies(show: Show, problems: Sequence[Problem]) -> None:
    """Copies are trained on as often as they are there; several answers to one problem cannot all be right."""
    count, torn = copies(problems)
    if count:
        more = f"; {torn} of them with different answers" if torn else ""
        show.say(f"{count} of {len(problems)} problems are copies of others, never on both sides of held out{more}")
