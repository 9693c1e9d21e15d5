"""What `init`, `train`, `sample` and `eval` do with their options: find model and data, settle the plan, go."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lgrpo import answers, checkpoints, console, noise, plan, reading, session
from lgrpo import evaluate as evaluation
from lgrpo.durable import read_json
from lgrpo.engine import Engine
from lgrpo.errors import UserError
from lgrpo.initialise import initialise
from lgrpo.latent_sft.schedule import schedule
from lgrpo.plan import Setting, TrainSettings
from lgrpo.policy import Policy
from lgrpo.problems import Problem, hold_out, need_chain
from lgrpo.rollout import Request
from lgrpo.runs import Run
from lgrpo.text import clean
from lgrpo.train import train as learn
from lgrpo.verify import Verifier

EVALUATED = 500  # problems of an endless source


def init(
    base: str | None,
    data: str | None,
    out: Path | None,
    recipe: str | None,
    steps: int | None,
    lr: float | None,
    limit: int | None,
    overwrite: bool,
    seed: int,
    device: str | None,
) -> Path:
    """Latent-SFT of `base`; returns the run folder."""
    where = session.pick_device(device)
    policy = session.load(base, where.value)
    if policy.latent:
        raise UserError(f"{base} has a latent chain already; `lgrpo train {base}` goes on from there")
    chosen = plan.choose_recipe(policy.card.recipe, recipe, _size(policy))
    problems, source = session.problems_for(policy, data, "train", limit)
    problems, without_chain = need_chain(problems)
    like, _ = plan.train_settings(chosen, k=policy.card.k, device=where.value)
    settings, rows = schedule(
        chosen.value, max_prompt=like.max_prompt, max_response=like.max_response, device=where.value, seed=seed,
        steps=steps, walk_lr=lr,
    )  # fmt: skip
    problems, too_long = session.fitting(policy, problems, settings.max_prompt, latent=True)
    train_set, held_out = hold_out(problems, settings.held_out, seed)
    out = out or checkpoints.run_folder(session.RUNS, base or "tiny", "init")
    same = session.identity(base=base or "tiny", data=source, recipe=chosen.value, seed=seed, lr=lr, limit=limit)
    same["steps"] = steps
    with (
        Verifier() as grader,
        Run.start(out, "init", [chosen, where, *rows], identity=same, overwrite=overwrite, device=where.value) as run,
        console.Show() as show,
    ):
        if run.finished:
            show.say(f"{out} is finished; `lgrpo train {out}` goes on from there")
            return out
        policy.card = replace(policy.card, data=source)
        show.plan(_plan(chosen, where, source, train_set, held_out, rows))
        _say_left_out(show, without_chain, "have no chain of thought")
        _say_left_out(show, too_long, f"are longer than {settings.max_prompt} positions")
        try:
            initialise(policy, train_set, held_out, settings, grader, run, show)
        except KeyboardInterrupt:
            show.say(f"stopped; the same command goes on from where {out} stands")
            raise
        show.say(f"saved {run.best()}; next: lgrpo train {out}")
    return out


def train(checkpoint: str | None, **options: Any) -> Path:
    """Latent-GRPO (or GRPO with --explicit) of `checkpoint`; returns the run folder."""
    if checkpoint is None and not options["explicit"]:
        found = checkpoints.newest_run(session.RUNS)
        record = (read_json(found / "run.json") if found else None) or {}
        if found and record.get("command") == "train" and options["out"] is None:
            return _train(**_continued(found, record, options))
        checkpoint = str(found) if found else None
    return _train(checkpoint=checkpoint, **options)


def _continued(folder: Path, record: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Options of the newest run, with what was given now on top."""
    given = {name: value for name, value in options.items() if value not in (None, (), False)}
    merged = {**options, **record["options"], **given, "out": folder}
    done = record["settings"]["steps"]["value"]
    if record.get("finished") and (merged["steps"] or 0) <= done:
        raise UserError(f"{folder} has finished its {done} steps; `lgrpo eval` scores it, --steps N trains on")
    return merged


def _train(
    checkpoint: str | None,
    data: str | None,
    out: Path | None,
    recipe: str | None,
    steps: int | None,
    lr: float | None,
    group: int | None,
    without: Sequence[str],
    surrogate: str | None,
    explicit: bool,
    limit: int | None,
    overwrite: bool,
    seed: int,
    device: str | None,
) -> Path:
    where = session.pick_device(device)
    source = checkpoints.resolve_checkpoint(checkpoint) if checkpoint else None
    policy = session.load(source, where.value)
    chosen = plan.choose_recipe(policy.card.recipe, recipe, _size(policy))
    problems, data_source = session.problems_for(policy, data, "train", limit)
    settings, rows = plan.train_settings(
        chosen, k=policy.card.k, device=where.value, seed=seed, explicit=explicit, without=without,
        steps=steps, lr=lr, group=group, surrogate=surrogate,
    )  # fmt: skip
    if explicit and policy.latent:
        raise UserError(f"{checkpoint} has a latent chain; --explicit needs a model that writes its chain")
    if not explicit and not session.has_latent_chain(policy, source or "", problems, settings):
        print(f"{checkpoint or 'tiny'} has no latent chain yet: running `lgrpo init` first", file=sys.stderr)
        base = init(checkpoint, data, None, recipe, None, None, limit, False, seed, device)
        return _train(
            str(base), data, out, recipe, steps, lr, group, without, surrogate, explicit, limit, overwrite, seed, device
        )
    problems, too_long = session.fitting(policy, problems, settings.max_prompt, not explicit)
    train_set, held_out = hold_out(problems, settings.held_out, seed)
    kind = "explicit-grpo" if explicit else "grpo"
    out = out or checkpoints.run_folder(session.RUNS, checkpoint or "tiny", kind)
    same = session.identity(
        checkpoint=source or "tiny", data=data_source, recipe=chosen.value, seed=seed, lr=settings.lr,
        group=settings.group, without=sorted(without), surrogate=settings.surrogate, explicit=explicit, limit=limit,
    )  # fmt: skip
    options = session.identity(
        checkpoint=source, data=data, recipe=recipe, steps=steps, lr=lr, group=group, without=tuple(without),
        surrogate=surrogate, explicit=explicit, limit=limit, seed=seed, device=device,
    )  # fmt: skip
    with (
        Verifier() as grader,
        Run.start(
            out, "train", [where, *rows], identity=same, overwrite=overwrite, device=where.value, options=options
        ) as run,
        console.Show() as show,
    ):
        initial = None
        if run.resumed and (latest := run.latest()):
            initial = policy if settings.kl else None
            policy = Policy.load(latest, where.value)
            show.say(f"going on with {out} from {latest.name}")
        policy.card = replace(policy.card, data=data_source)
        show.plan(_plan(chosen, where, data_source, train_set, held_out, rows))
        _say_left_out(show, too_long, f"are longer than {settings.max_prompt} positions")
        learn(policy, train_set, held_out, settings, grader, run, show, initial)
        if grader.failures:
            show.warn(f"the verifier failed on {grader.failures} answers: {dict(grader.reasons)}")
        again = "" if run.finished else "stopped; `lgrpo train` goes on from here. "
        show.say(f"{again}best checkpoint {run.best()}; `lgrpo eval {out}` scores it")
    return out


def sample(
    problem: str | None,
    model: str | None,
    samples: int,
    explore: bool,
    temperature: float | None,
    max_response: int | None,
    chain: bool,
    as_json: bool,
    seed: int,
    device: str | None,
) -> None:
    """Answer one problem: the answer on stdout, the latent chain on stderr."""
    if problem is None:
        problem = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    if not problem.strip():
        raise UserError("no problem given; put it in quotes, or pipe it in")
    where = session.pick_device(device)
    policy = session.load(model or str(session.newest()), where.value)
    settings = _engine_settings(policy, where.value, max_response)
    engine = Engine(
        policy, settings.latent_settings, settings.text_settings, settings.max_response, settings.slots
    )
    prompt = tuple(policy.prompt_ids(problem, policy.latent))
    asked = Problem(problem, "")
    scale = settings.noise_scale if explore else 0.0
    warmth = settings.temperature if temperature is None else temperature
    requests = [
        Request(prompt, noise.row_key(seed, asked.key, number), policy.latent, scale, warmth)
        for number in range(samples)
    ]
    for rollout in engine.generate(requests):
        steps = reading.latent_steps(policy, rollout, settings.tau)
        text = reading.answer_text(policy, rollout)
        if chain:
            for number, words in enumerate(steps, 1):
                line = "  ".join(f"{clean(word)} {weight:.2f}" for word, weight in words if weight >= 0.005)
                print(f"{number:3}  {line}", file=sys.stderr)
            if not rollout.valid:
                print(f"(cut off after {rollout.length} positions)", file=sys.stderr)
        if as_json:
            print(json.dumps({
                "problem": problem, "answer": answers.boxed(text), "text": text, "latent_length": rollout.latent_length,
                "explicit_length": rollout.explicit_length, "valid": rollout.valid, "chain": steps,
            }))  # fmt: skip
        else:
            print(clean(text))


def evaluate(
    checkpoints_: Sequence[str],
    data: str | None,
    limit: int | None,
    runs: int | None,
    samples: int,
    max_response: int | None,
    as_json: bool,
    seed: int,
    device: str | None,
) -> None:
    """Score each checkpoint; a table on stderr, or JSON on stdout."""
    where = session.pick_device(device)
    results: list[dict[str, Any]] = []
    with Verifier() as grader, console.Show() as show:
        for checkpoint in checkpoints_ or [str(session.newest())]:
            policy = session.load(checkpoint, where.value)
            problems, source = session.problems_for(policy, data, "test", limit)
            if limit is None and source.startswith(session.ARITHMETIC):
                problems = problems[:EVALUATED]
            settings = _engine_settings(policy, where.value, max_response)
            score = _score(policy, problems, settings, runs, samples, seed, grader, show, checkpoint)
            results.append({"checkpoint": checkpoint, "results": [score.as_json(Path(source).stem)]})
        if grader.failures:
            show.warn(f"the verifier failed on {grader.failures} answers: {dict(grader.reasons)}")
    if as_json:
        print(json.dumps(results[0] if len(results) == 1 else results))
    else:
        rows = [{"checkpoint": one["checkpoint"], **row} for one in results for row in one["results"]]
        console.scores(rows, sys.stdout)


def _score(
    policy: Policy,
    problems: Sequence[Problem],
    settings: TrainSettings,
    runs: int | None,
    samples: int,
    seed: int,
    grader: Verifier,
    show: console.Show,
    name: str,
) -> evaluation.Score:
    engine = Engine(
        policy, settings.latent_settings, settings.text_settings, settings.max_response, settings.slots
    )
    runs = runs or (4 if settings.recipe == "high" else 5)

    def ask(title: str, count: int, scale: float) -> list[evaluation.Answered]:
        show.stage(f"{title} {name}", len(problems))
        return evaluation.answer(
            policy, engine, problems, grader, runs=count, noise_scale=scale, seed=seed,
            temperature=settings.temperature, on_finish=lambda done, right: show.step(done, {}),
        )  # fmt: skip

    answered = ask("Pass@1", runs, 0.0)
    explored = ask("pass@k", samples, settings.noise_scale) if samples else []
    return evaluation.summarise(answered, explored)


def _engine_settings(policy: Policy, device: str, max_response: int | None) -> TrainSettings:
    """The recipe's rollout settings, for a policy that is only asked."""
    chosen = plan.choose_recipe(policy.card.recipe, None, _size(policy))
    settings, _ = plan.train_settings(
        chosen, k=policy.card.k, device=device, explicit=not policy.latent, max_response=max_response
    )
    return settings


def _size(policy: Policy) -> int:
    return sum(parameter.numel() for parameter in policy.model.parameters())


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
