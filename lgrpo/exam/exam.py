"""One checkpoint answers a benchmark: missing samples are made and kept, and all of them are summarised."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lgrpo import evaluate, reading, session
from lgrpo.data.benchmarks import known
from lgrpo.engine import Engine
from lgrpo.exam.samples import EXPLORED, PASS_AT_1, Outcome, Samples, path_of
from lgrpo.interrupt import Stopped
from lgrpo.plan import TrainSettings
from lgrpo.policy import Policy
from lgrpo.problems import Problem
from lgrpo.runs.checkpoints import safe_name
from lgrpo.runs.contents import short_hash
from lgrpo.runs.durable import now, read_json, write_json
from lgrpo.runs.guard import refuse_links, writing
from lgrpo.screen import Show
from lgrpo.verify import Verifier, boxed
from lgrpo.verify.verifier import in_words

RUNS = {"tiny": 5, "low": 5, "high": 4}  # noise-free runs by recipe, where the benchmark does not say: published

FASTEST = 1e12  # tokens a second: more is damage


class Benchmark(NamedTuple):
    """Problems to be asked."""

    name: str  # what is shown
    source: str  # as the user, or the checkpoint, named it
    problems: Sequence[Problem]
    left_out: int = 0  # problems beside them whose answers cannot be checked


class Scored(NamedTuple):
    """The score of one checkpoint on one benchmark."""

    benchmark: Benchmark
    shares: Sequence[float]  # of each problem
    entry: dict[str, Any]  # of `results` in `--json`
    model: str  # the folder or hub name that was asked
    model_hash: Any  # of its files


class Exam:
    """A checkpoint, ready to be asked."""

    def __init__(
        self,
        name: str,
        model: str,
        policy: Policy,
        engine: Engine,
        settings: TrainSettings,
        seed: int,
        out: Path | None,
    ) -> None:
        """name: as the user gave it. model: what it means. out: the folder of the samples, where not the usual one."""
        self.name, self.model, self.policy, self.engine = name, model, policy, engine
        self.settings, self.seed = settings, seed
        self.folder = out or _folder(name, model)
        if out is None:  # a link that the user named is the user's own
            refuse_links(self.folder.parent, [self.folder.name])
        self.identity = {
            "model": session.model_hash(policy, model),
            "mode": policy.card.mode,
            "latent": asdict(engine.latent),
            "text": asdict(engine.text),
            "max_response": engine.max_response,
            "seed": seed,
            "dtype": str(policy.dtype),
            "device": policy.device.type,
        }
        self._words: dict[int, str] = {}  # of tokens

    def score(self, benchmark: Benchmark, runs: int | None, explored: int, grader: Verifier, show: Show) -> Scored:
        """The score from `runs` noise-free samples of each problem (None: as published) and `explored` with noise.

        Stopped by Ctrl-C it raises Stopped: what was made is kept.
        """
        protocol = known(benchmark.source)
        runs = runs or (protocol.runs if protocol else RUNS[self.settings.recipe])
        kinds = {PASS_AT_1: runs, EXPLORED: explored}
        identity = {**self.identity, "data": benchmark.source}
        path = path_of(self.folder, benchmark.name, identity)
        speed = _Speed()
        with Samples(path, benchmark.problems) as samples:
            there = sum(len(samples.of(kind, count)) for kind, count in kinds.items())
            if there:
                total = sum(kinds.values()) * len(benchmark.problems)
                show.say(
                    f"{benchmark.name}: {'all' if there == total else f'{there} of'} {total} samples are in {path}"
                )
            try:
                for kind, count in kinds.items():
                    self._make(benchmark, samples, kind, count, grader, show, speed)
            except KeyboardInterrupt:
                show.say(f"stopped; the same command goes on from the samples in {path}")
                raise Stopped from None
            outcomes = [samples.of(kind, count) for kind, count in kinds.items()]
        score = evaluate.summarise(*outcomes)
        if trouble := in_words(score.unchecked):
            show.warn(f"{self.name} on {benchmark.name}: {trouble}")
        data = session.data_hash(benchmark.problems)
        summary = path.with_name(f"summary-{safe_name(benchmark.name)}-{short_hash([path.name, data, kinds])}.json")
        if (rate := speed.rate()) is None:  # nothing was rolled out this time
            rate = _kept_rate(summary)
        entry = {
            **score.as_json(benchmark.name),
            "left_out": benchmark.left_out,
            "tokens_per_second": rate,
            "data_hash": data,
        }
        note = {
            "checkpoint": self.name,
            "results": [entry],
            "shares": score.shares,
            "model": self.model,
            "run_id": (read_json(self.folder.parent / "run.json") or {}).get("id"),  # of whose folder this is
            "identity": identity,
            "data_hash": data,
            "samples": path.name,
            "tokens_per_second": rate,
            "time": now(),
        }
        with writing(self.folder):
            write_json(summary, note)
        return Scored(benchmark, score.shares, entry, self.model, self.identity["model"])

    def _make(
        self,
        benchmark: Benchmark,
        samples: Samples,
        kind: str,
        count: int,
        grader: Verifier,
        show: Show,
        speed: "_Speed",
    ) -> None:
        total = count * len(benchmark.problems)
        missing = samples.missing(kind, count)
        if not missing:
            return
        title, number = ("Pass@1", "Pass@1") if kind == PASS_AT_1 else ("pass@k", "pass@1, noise")
        show.stage(f"{title} {self.name} on {benchmark.name}", total, total - len(missing))
        outcomes = samples.of(kind, count)
        done, right = len(outcomes), sum(outcome.right for outcome in outcomes)

        def take(answered: Sequence[evaluate.Answered]) -> None:
            nonlocal done, right
            new = [
                Outcome(
                    one.problem, one.run, one.right, one.valid, one.latent_length, one.explicit_length, one.unchecked
                )
                for one in answered
            ]
            samples.add(kind, new, [self._detail(one) for one in answered])
            speed.positions += sum(one.latent_length + one.explicit_length for one in new)
            done, right = done + len(new), right + sum(one.right for one in new)
            show.step(done, {number: right / done})
            shown = answered[-1]
            steps, text = reading.readable(self.policy, shown.rollout, self.settings.tau)
            show.sample(benchmark.problems[shown.problem].problem, steps, text, shown.right)

        speed.seconds += evaluate.answer_each(
            self.policy, self.engine, benchmark.problems, missing, grader.verdicts, take,
            noise_scale=0.0 if kind == PASS_AT_1 else self.settings.noise_scale,
            seed=self.seed, temperature=self.settings.temperature,
        )  # fmt: skip

    def _detail(self, one: evaluate.Answered) -> dict[str, Any]:
        return {
            "answer": boxed(one.text),
            "text": reading.answer_text(self.policy, one.rollout),
            "chain": reading.heaviest(self.policy, one.rollout, self.settings.tau, self._words),
        }


@dataclass
class _Speed:
    """Positions that were rolled out, and how long that took."""

    positions: int = 0
    seconds: float = 0.0

    def rate(self) -> float | None:
        return self.positions / self.seconds if self.seconds > 0 else None


def _kept_rate(summary: Path) -> float | None:
    """The speed an earlier evaluation noted, where it is a speed."""
    rate = (read_json(summary) or {}).get("tokens_per_second")
    return rate if isinstance(rate, float) and 0 <= rate < FASTEST else None


def _folder(name: str, model: str) -> Path:
    """Where samples go: `eval` in the run folder that the model is of, else a folder of its own beside the runs."""
    run = Path(model).parent.parent
    if Path(model).parent.name == "checkpoints" and (run / "run.json").exists():
        return run / "eval"
    return session.RUNS / "eval" / safe_name(name)
