"""`lgrpo eval`: score models on benchmarks, and compare them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lgrpo import context, session
from lgrpo.asking import ask
from lgrpo.compare import paired
from lgrpo.data import read_problems
from lgrpo.data.benchmarks import known
from lgrpo.engine import Engine
from lgrpo.errors import UserError
from lgrpo.exam.exam import Benchmark, Exam, Scored
from lgrpo.policy import trained_on
from lgrpo.report import write_report
from lgrpo.screen import Show
from lgrpo.screen.scores import markdown, scores
from lgrpo.stdout import answering
from lgrpo.text import clean
from lgrpo.verify import Verifier

EVALUATED = 500  # problems of an endless source
NAMED = 60  # letters by which a problem is named


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What a user asks of `eval`; None leaves it to the benchmark or the checkpoint."""

    checkpoints: Sequence[str] = ()
    data: Sequence[str] = ()
    limit: int | None = None
    runs: int | None = None
    samples: int = 8
    max_response: int | None = None
    out: Path | None = None
    as_json: bool = False
    markdown: bool = False
    report: bool = False
    seed: int = 0
    device: str | None = None


def evaluate(asked: EvalOptions) -> None:
    """Score each checkpoint on each benchmark: a table, Markdown or JSON on stdout.

    The later ones are compared to the first. Samples are kept (samples.py): stopped, the same command goes on.
    """
    names = asked.checkpoints or [str(session.newest())]
    runs = _runs(names) if asked.report else []
    if replace(asked, checkpoints=()) == EvalOptions(report=True):  # nothing else is asked
        _report(runs, _answer)
        return
    if asked.as_json and asked.markdown:
        raise UserError("--json and --markdown are two forms of the same answer; choose one")
    with answering():  # no stdout, no answer
        pass
    where = session.pick_device(asked.device)
    for name in names:
        session.check_name(name)  # all names first: a wrong one must not cost the minutes of those before it
    benchmarks = _named_apart([_read(source, asked.limit) for source in dict.fromkeys(asked.data)])
    with Verifier() as grader, Show() as show:
        _say_left_out(benchmarks, show)
        scored = [(name, _checkpoint(name, where.value, benchmarks, asked, grader, show)) for name in names]
    for _, later in scored[1:]:
        _compare(scored[0], later)
    results = [_named(name, ones, asked.seed) for name, ones in scored]
    with answering() as stdout:
        if asked.as_json:
            print(json.dumps(results[0] if len(results) == 1 else results, allow_nan=False), file=stdout)
        elif asked.markdown:
            print(markdown(results), file=stdout)
        else:
            scores(results, stdout)
    _report(runs, session.on_stderr)  # last: whatever it fails on, the scores are told


def _answer(text: str) -> None:
    with answering() as stdout:
        print(clean(text), file=stdout)


def _named(name: str, ones: Sequence[Scored], seed: int) -> dict[str, Any]:
    """The results of a checkpoint, and which one it was: a run's name may mean another tomorrow."""
    which = {"model": ones[0].model, "model_hash": ones[0].model_hash, "seed": seed}
    return {"checkpoint": name, **which, "results": [one.entry for one in ones]}


def _runs(names: Sequence[str]) -> list[Path]:
    """The runs among the checkpoints. UserError where none is one."""
    runs = [Path(name) for name in dict.fromkeys(names) if (Path(name) / "run.json").is_file()]
    if not runs:
        raise UserError("--report: only runs have a report, and none of these is one; name a folder of runs/")
    return runs


def _report(runs: Sequence[Path], say: Callable[[str], None]) -> None:
    """The reports of runs, with the scores that were kept in them."""
    for run in runs:
        try:
            written = write_report(run)
        except OSError as error:
            raise UserError(f"the report of {run} cannot be written: {error.strerror}") from error
        say(f"report: {written}")


def _read(source: str, limit: int | None) -> Benchmark:
    benchmark = known(source)
    if limit is None and source.partition(":")[0] == session.ARITHMETIC:
        limit = EVALUATED
    problems = read_problems(source, benchmark.split if benchmark else "test", limit)
    try:
        kept, left_out = session.checkable(problems)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return Benchmark(Path(source).stem, source, kept, left_out)


def _say_left_out(benchmarks: Sequence[Benchmark], show: Show) -> None:
    """No response can solve such a problem: counted as wrong, it would make every score too low."""
    for one in benchmarks:
        if one.left_out:
            show.say(
                f"{one.left_out} of the {one.left_out + len(one.problems)} problems of {one.name} have an answer that "
                "cannot be checked and are left out"
            )


def _named_apart(benchmarks: list[Benchmark]) -> list[Benchmark]:
    """By their whole source where two have one name."""
    short = [one.name for one in benchmarks]
    return [one._replace(name=one.source) if short.count(one.name) > 1 else one for one in benchmarks]


def _checkpoint(
    name: str, device: str, benchmarks: Sequence[Benchmark], asked: EvalOptions, grader: Verifier, show: Show
) -> list[Scored]:
    """The scores of one checkpoint. Its memory is free again when this returns."""
    # Once: the best checkpoint of a run that goes on may be another the next moment.
    model = session.find(name, show.warn)
    policy = session.load(name, device, model)
    policy.name = name
    if not benchmarks:
        benchmarks = [_read(session.test_source(policy), asked.limit)]
        _say_left_out(benchmarks, show)
    settings = ask.engine_settings(policy, asked.max_response, show.say)
    policy.card = ask.recognised(policy, name, benchmarks[0].problems, settings)
    for benchmark in benchmarks:
        rows = ((f"{benchmark.name}, {one.problem[:NAMED]!r}", one) for one in benchmark.problems)
        context.check_room(policy, rows, settings.max_response)
        if known := trained_on.count(policy.trained_on, benchmark.problems):
            show.warn(
                f"{known} of the {len(benchmark.problems)} problems of {benchmark.name} are among those {name} was "
                f"trained on ({policy.card.data}), and the score tells less; give --data with problems it has not seen"
            )
    engine = Engine(
        policy, settings.latent_settings, settings.text_settings, settings.max_response, settings.slots, show.warn
    )
    exam = Exam(name, model, policy, engine, settings, asked.seed, asked.out)
    scored = [exam.score(benchmark, asked.runs, asked.samples, grader, show) for benchmark in benchmarks]
    engine.release()
    return scored


def _compare(first: tuple[str, Sequence[Scored]], later: Sequence[Scored]) -> None:
    """Add `against` to the entries of problems that the first checkpoint answered, too."""
    name, ones = first
    before = {one.benchmark.name: one for one in ones}
    for after in later:
        old = before.get(after.benchmark.name)
        if old is None or old.benchmark.problems != after.benchmark.problems:
            continue
        found = paired(old.shares, after.shares)

        def flipped(places: Sequence[int], old: Scored = old, new: Scored = after) -> list[dict[str, Any]]:
            return [
                {
                    "index": place,
                    "problem": new.benchmark.problems[place].problem,
                    "before": old.shares[place],
                    "after": new.shares[place],
                }
                for place in places
            ]

        after.entry["against"] = {
            "checkpoint": name,
            "difference": found.mean,
            "difference_se": found.standard_error,
            "difference_interval": list(found.interval),
            "won": flipped(found.won),
            "lost": flipped(found.lost),
        }
