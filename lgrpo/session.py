"""What every command needs first: the device, the model, the problems."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lgrpo import faithful, noise, tiny
from lgrpo.data import files, read_problems
from lgrpo.data.benchmarks import known
from lgrpo.engine import Engine
from lgrpo.errors import UserError, first_line
from lgrpo.latent_sft.schedule import Schedule
from lgrpo.plan import Setting, TrainSettings
from lgrpo.policy import CARD, Policy, card, trained_on
from lgrpo.policy import files as model_files
from lgrpo.problems import Problem, hold_out
from lgrpo.rollout import LATENT, Request, Rollout
from lgrpo.runs import checkpoints
from lgrpo.runs.contents import content_hash, file_hashes, short_hash
from lgrpo.superposition import weights_of
from lgrpo.text import clean
from lgrpo.verify.answers import boxed, tidy
from lgrpo.verify.verifier import LONGEST

RUNS = Path("runs")
TINY = "tiny"  # the embedded model, where nothing here has that name
ARITHMETIC = "arithmetic"
PROBED = 16  # problems a foreign checkpoint is tried on
FIRST = 32  # positions of its chain that tell an explicit model
SINGLE = 0.9  # a superposition whose heaviest token has more weight is that token


def pick_device(asked: str | None) -> Setting:
    """The device asked for, else the first GPU, else the CPU. Raises UserError when it is not there."""
    if asked is None:
        if torch.cuda.is_available():
            return Setting("device", "cuda", f"found {torch.cuda.get_device_name()}")
        return Setting("device", "cpu", f"no GPU found; {torch.get_num_threads()} threads")
    try:
        torch.zeros(1, device=asked).item()  # there and back: `meta` takes it and gives nothing
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {asked!r} cannot be used ({first_line(error)}); try --device cpu") from error
    return Setting("device", asked, "you set it")


def place_of(policy: Policy, device: str) -> dict[str, Any]:
    """What the rounding of a policy's numbers depends on, for the record of a run."""
    threads = {"threads": torch.get_num_threads()} if policy.device.type == "cpu" else {}
    return {"device": device, "dtype": str(policy.dtype), **threads}


def is_tiny(source: str | None) -> bool:
    """Whether the embedded model is meant: by no name, or by its own where nothing here has it."""
    return source is None or (source == TINY and not Path(TINY).exists())


def on_stderr(text: str) -> None:
    """A note outside of any screen."""
    print(clean(text), file=sys.stderr)


def check_name(source: str) -> None:
    """Raises UserError where a word on the command line means no model: quick, for its files are not read."""
    if not is_tiny(source):
        checkpoints.candidates(source)


def find(source: str | None, say: Callable[[str], None] = on_stderr) -> str:
    """The model folder or hub name meant by a word on the command line; of a checkpoint of ours, one that is undamaged.

    `say` hears of a damaged one that another takes the place of. Raises UserError where there is none.
    """
    return str(tiny.MODEL) if source is None or is_tiny(source) else checkpoints.resolve_checkpoint(source, say)


def model_hash(policy: Policy, model: str) -> str:
    """Of the files that decide what a model answers, which `find` found; a hub's commits often change other ones."""
    if Path(model).is_dir():
        return content_hash(Path(model))
    folder, names = model_files.fetched(model, policy.tokenizer)
    try:
        return short_hash(file_hashes(folder, names))
    except OSError as error:
        raise UserError(f"{model}: cannot be read from the hub's cache ({error.strerror or error})") from error


def load(source: str | None, device: str, found: str | None = None) -> Policy:
    """The policy of a run folder, a model folder or a hub name; None and `tiny` are the embedded model.

    found: what `find` said of it, where it was asked before.
    """
    _quieten()
    policy = Policy.load(found or find(source), device)
    policy.name = source or TINY
    if not is_tiny(source):
        faithful.check(policy)
    if not policy.knows_trained_on:
        on_stderr(
            f"whether {source} was trained on the problems it is given is not known: its {trained_on.FILE} is of an "
            f"older form, or was never fetched; `hf download {source}` fetches it where there is a network"
        )
    if is_tiny(source):
        policy.card = replace(policy.card, data=ARITHMETIC)
    return policy


def _quieten() -> None:
    """Keep transformers' notes and the bars of its readers and writers off the screen; downloads keep theirs."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()  # and, with it, the bars of downloads
    enable_progress_bars()


def newest(commands: Sequence[str] = ("train", "init")) -> Path:
    """The newest run here. Raises UserError when there is none."""
    found = checkpoints.newest_run(RUNS, commands)
    if found is None:
        raise UserError(f"there is no run in {RUNS}/ yet; `lgrpo train` makes one, or name a checkpoint")
    return found


def problems_for(policy: Policy, data: str | None, split: str, limit: int) -> tuple[list[Problem], str]:
    """The first `limit` problems (0: all) and the name of their source: `data`, else what the policy was trained on."""
    source = data or _trained_on(policy)
    return read_problems(source, split=split, limit=limit or None), source


def test_source(policy: Policy) -> str:
    """The data a policy was trained on, where it has a test set of its own. Raises UserError where it has none."""
    source = _trained_on(policy)
    benchmark = known(source)
    if benchmark.split == "train" if benchmark else Path(source).suffix.lower() in files.TYPES:
        raise UserError(f"{policy.name} was trained on {source}; give --data with problems it has not seen")
    return source


def _trained_on(policy: Policy) -> str:
    if policy.card.data is None:
        raise UserError(f"{policy.name} does not say what it was trained on; give --data FILE or a hub name")
    return policy.card.data


def fitting(policy: Policy, problems: Sequence[Problem], max_prompt: int, latent: bool) -> tuple[list[Problem], int]:
    """Problems whose prompt has at most `max_prompt` positions, and how many were left out."""
    fit = [one for one in problems if len(policy.prompt_ids(one.problem, latent)) <= max_prompt]
    if not fit:
        raise UserError(f"every prompt is longer than {max_prompt} positions; try --recipe high")
    return fit, len(problems) - len(fit)


def checkable(problems: Sequence[Problem]) -> tuple[list[Problem], int]:
    """Problems with an answer the verifier can compare, and how many were left out. Raises UserError without any."""
    kept = [one for one in problems if 0 < len(tidy(one.answer)) <= LONGEST]
    if not kept:
        raise UserError(
            f"none of the {len(problems)} answers can be checked (empty, or longer than {LONGEST} characters); "
            "give data with answers"
        )
    return kept, len(problems) - len(kept)


def set_aside(
    problems: Sequence[Problem], wanted: int, seed: int, plan: Sequence[Setting]
) -> tuple[list[Problem], list[Problem], list[Setting]]:
    """(training problems, held-out ones, the plan with their number): a fifth of the data where `wanted` is more."""
    fifth = max(1, len(problems) // 5)
    if fifth < wanted:
        row = Setting("held_out", fifth, f"a fifth of the {len(problems)} problems")
        plan = [row if entry[0] == "held_out" else entry for entry in plan]
    return *hold_out(problems, min(fifth, wanted), seed), list(plan)


def data_hash(problems: Sequence[Problem]) -> str:
    """Of all problems, answers and chains in their order: a run goes on only with the data it began with."""
    digest = hashlib.blake2b(digest_size=8)
    for one in problems:
        digest.update(repr((one.problem, one.answer, one.cot)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def has_latent_chain(policy: Policy, source: str | None, problems: Sequence[Problem], settings: TrainSettings) -> bool:
    """Whether the policy reasons in latent steps already.

    `lgrpo.json` says so; a checkpoint without one is tried. It does when at least half of a few noise-free chains end
    by themselves, a boxed answer follows, and half of their steps are mixtures. An explicit model walks its own chain
    in superpositions, too, but each is nearly a single token: measured, 0.91 to 0.95 of its steps against 0.06 to 0.17.

    Raises UserError where it turns out to have one and `lgrpo.json` may lie on the hub unread: it says how to ask.
    """
    if policy.latent or source is None:
        return policy.latent
    path, certain = model_files.look_for(source, CARD)
    if path is not None:
        return False
    prompts = [(one, tuple(policy.prompt_ids(one.problem, latent=True))) for one in problems[: 4 * PROBED]]
    requests = [
        Request(ids, noise.row_key(0, one.key, 0), True, 0.0) for one, ids in prompts if len(ids) <= settings.max_prompt
    ][:PROBED]

    def walk(positions: int) -> list[Rollout]:
        engine = Engine(policy, settings.latent_settings, settings.text_settings, positions, PROBED)
        return engine.generate(requests)

    if not _mixes(walk(min(FIRST, settings.max_response)), settings.tau):
        return False  # an explicit model is known by its first steps
    rollouts = walk(settings.max_response)
    walked = [r for r in rollouts if r.valid and boxed(policy.decode(r.hard_tokens)) is not None]
    latent = 2 * len(walked) >= len(rollouts) and _mixes(walked, settings.tau)
    if latent and not certain:
        raise card.never_fetched(source)
    return latent


def _mixes(rollouts: Sequence[Rollout], tau: float) -> bool:
    """Whether at least half of the latent steps are more than one token."""
    scores = [rollout.scores[rollout.tokens == LATENT] for rollout in rollouts]
    if sum(map(len, scores)) == 0:
        return False
    heaviest = weights_of(torch.cat(scores), tau).amax(-1)  # [steps]
    return 2 * int((heaviest > SINGLE).sum()) <= len(heaviest)


def identity(
    settings: TrainSettings | Schedule, problems: Sequence[Problem], held_out: Sequence[Problem], **sources: Any
) -> dict[str, Any]:
    """What makes two runs the same one: where they begin, and all settings that decide what is computed.

    problems: all of the data. held_out: which a later version of lgrpo might choose otherwise.
    """
    free = {"slots", "micro_tokens", "keep_cache", "checkpointing"}
    free |= {"steps", "eval_every"} if isinstance(settings, TrainSettings) else set()
    decisive = {name: value for name, value in asdict(settings).items() if name not in free}
    return {**sources, "data_hash": data_hash(problems), **decisive, "held_out_hash": data_hash(held_out)}
