"""The command line: options and their help. What a command does stands in commands.py, asking/ and exam/.

Importing this file must stay cheap: `lgrpo --help` loads neither torch nor transformers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lgrpo import __version__
from lgrpo.people import People, helping, telling
from lgrpo.ranges import ANSWERS, COUNT, RATE, TEMPERATURE
from lgrpo.values import NAME, Real, whole

DATA_HELP = (
    "JSON lines, JSON, CSV, Parquet or GSM8K-Aug text file, or a hub name; `arithmetic` is the built-in generator.  "
    "[default: what the checkpoint was trained on; arithmetic for tiny]"
)


def shared(function: Callable[..., None], **seed: Any) -> Callable[..., None]:
    """Options every command has."""
    function = helping(function)
    function = click.option("--device", help="cpu, cuda, cuda:1, ...  [default: the first GPU, else the CPU]")(function)
    seed = seed or {"default": 0, "show_default": True, "help": "Seed of all randomness."}
    return click.option("--seed", type=click.IntRange(0, 2**32 - 1), **seed)(function)


def shared_by_train(function: Callable[..., None]) -> Callable[..., None]:
    """The same, where no seed is not the same as 0."""
    return shared(function, help="Seed of all randomness.  [default: 0; that of a run of `train` that is named]")


def training(function: Callable[..., None]) -> Callable[..., None]:
    """Options of the commands that write a run."""
    function = click.option(
        "--log-to",
        type=click.Choice(["tensorboard", "wandb", "trackio", "none"]),
        help="Send the numbers to a tracker as well.  [default: none; of a run that `train` is given: as it began]",
    )(function)
    function = click.option(
        "--overwrite",
        is_flag=True,
        help="Replace another run, or a finished one, in the same folder.  [default: refuse]",
    )(function)
    function = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any other setting of the plan shown at the start, such as batch=8, max_response=512 or limit=1000 "
        "(problems used); repeatable.  [default: as the plan says]",
    )(function)
    function = click.option(
        "--recipe",
        type=click.Choice(["tiny", "low", "high"]),
        help="Set of defaults; `low` and `high` are the published ones.  [default: the checkpoint's, else by size]",
    )(function)
    function = click.option(
        "--out",
        type=click.Path(path_type=Path),
        help="Run folder.  [default: runs/<model>-init, -grpo or -explicit-grpo]",
    )(function)
    return click.option("--data", type=NAME, help=DATA_HELP)(function)


@click.group(
    cls=People,
    context_settings={"max_content_width": 100},
    epilog="""\b
    Examples:
      lgrpo train                      init, then reinforcement, of the embedded model: minutes
      lgrpo sample "Tom has 3 boxes with 12 pens each and gives away 7. How many pens are left?"
      lgrpo eval runs/tiny-init runs/tiny-grpo
    """,
)
@telling(lambda _: f"lgrpo, version {__version__}", "--version", help="Show the version and exit.")
@helping
def main() -> None:
    """Teach a language model to reason in latent space, and reinforce it, on one GPU (or a CPU)."""


@main.command(
    short_help="Give a model a latent chain of thought (Latent-SFT).",
    epilog="""\b
    Examples:
      lgrpo init                       the embedded model, into runs/tiny-init
      lgrpo init Qwen/Qwen2.5-0.5B-Instruct --data gsm8k-aug
      lgrpo init models/mine --data train.jsonl --out runs/mine --set batch=16
    """,
)
@click.argument("base", type=NAME, required=False)
@training
@click.option("--steps", type=whole(COUNT), help="Optimiser steps of all stages together.  [default: recipe]")
@click.option("--lr", type=Real(RATE), help="Peak learning rate of the last stage.  [default: recipe]")
@shared
def init(**options: Any) -> None:
    """Give BASE, a causal language model, a latent chain of thought.

    BASE is a folder or a hub name; left out, it is the embedded tiny model. It learns from those problems of the
    data that have a chain of thought. The result is a run folder; `lgrpo train` goes on from there.
    """
    from lgrpo import commands
    from lgrpo.options import InitOptions

    commands.init(InitOptions(**options))


@main.command(
    short_help="Reinforce it (Latent-GRPO).",
    epilog="""\b
    Examples:
      lgrpo train                      the newest run here, or else the embedded model
      lgrpo train runs/Qwen2.5-0.5B-Instruct-init --steps 500
      lgrpo train runs/tiny-init --without one-sided --out runs/ablation
      lgrpo train someone/latent-model --data train.parquet --set max_response=512
    """,
)
@click.argument("checkpoint", type=NAME, required=False)
@training
@click.option("--steps", type=whole(COUNT), help="Batches to learn from.  [default: from the recipe]")
@click.option("--lr", type=Real(RATE), help="Learning rate, constant.  [default: recipe]")
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(["masking", "one-sided", "first-token"]),
    help="Switch a technique off, for ablations; repeatable.  [default: all on, published]",
)
@click.option(
    "--surrogate",
    type=click.Choice(["published", "weighted"]),
    help="Mean over the K components, or weighted by the mixture.  [default: weighted for tiny, else published]",
)
@click.option("--explicit", is_flag=True, help="The baseline: ordinary GRPO on written chains.  [default: off]")
@shared_by_train
def train(**options: Any) -> None:
    """Reinforce CHECKPOINT, a model with a latent chain.

    CHECKPOINT is a run folder, a model folder or a hub name; left out, it is the newest run here, or else (always
    with --explicit) the embedded tiny model. A run of `train` goes on; with --out, another begins from its best
    checkpoint. A model without a latent chain goes through `init` first.
    """
    from lgrpo import commands
    from lgrpo.options import TrainOptions

    commands.train(TrainOptions(**options))


@main.command(
    short_help="Ask it, and read the latent chain.",
    epilog="""\b
    Examples:
      lgrpo sample "Ann has 5 bags with 6 nuts each. How many nuts?"   the newest run here
      lgrpo sample "..." --model runs/tiny-init -n 8 --explore         where chains part; the vote
      echo "..." | lgrpo sample --no-chain
      lgrpo sample --file problems.jsonl > answers.jsonl
      lgrpo sample                                                     ask one after the other
    """,
)
@click.argument("problem", required=False)
@click.option("--model", type=NAME, help="Run folder, model folder or hub name.  [default: the newest run here]")
@click.option("-n", "--samples", type=whole(ANSWERS), default=1, show_default=True, help="Answers to draw.")
@click.option(
    "--explore",
    is_flag=True,
    help="Noise on the latent chain, as in training; with -n, shows where the chains part.  [default: none]",
)
@click.option(
    "--temperature", type=Real(TEMPERATURE), help="Of the answer's tokens.  [default: as trained; published: 0.6]"
)
@click.option("--max-response", type=whole(COUNT), help="Positions at most.  [default: as trained, else the recipe's]")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Show all K words of each latent step (JSON has them anyway).  [default: the top ones]",
)
@click.option("--chain/--no-chain", default=True, help="Show the latent chain, or leave it out.  [default: show]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a sample on stdout.  [default: text]")
@click.option(
    "--file",
    type=NAME,
    metavar="DATA",
    help="Answer each problem of a data file, or of JSON lines on stdin (`-`), as JSON lines.  [default: one problem]",
)
@shared
def sample(**options: Any) -> None:
    """Ask a model PROBLEM: the answer on stdout, the latent chain on stderr, a line a step.

    Left out, the problem comes from stdin; on a terminal, a prompt asks for one after the other, and remembers what was
    typed (~/.local/state/lgrpo/history). With -n the answers follow each other on stdout, and the vote is on stderr.
    """
    from lgrpo.asking import sample as asking

    asking.sample(**options)


@main.command(
    name="eval",
    short_help="Score it; several are compared problem by problem.",
    epilog="""\b
    Examples:
      lgrpo eval                               the newest run here, on problems it has not seen
      lgrpo eval runs/tiny-init runs/tiny-grpo          the second compared to the first
      lgrpo eval runs/mine --data gsm8k --data math500 --report
      lgrpo eval runs/mine --data test.jsonl --json > scores.json
    """,
)
@click.argument("checkpoints", type=NAME, nargs=-1)
@click.option(
    "--data",
    type=NAME,
    multiple=True,
    help="arithmetic, gsm8k, gsm8k-aug, gsm-hard, svamp, multiarith, math500, aime24, aime25, gpqa, file or hub name; "
    "repeatable.  [default: the test problems of what the checkpoint was trained on]",
)
@click.option("--limit", type=whole(COUNT), help="Problems at most.  [default: 500 of arithmetic, else all]")
@click.option(
    "--runs",
    type=whole(ANSWERS),
    help="Noise-free runs a problem.  [default: as published: 5; math500 4, gpqa 8, aime 64; `high` on other data 4]",
)
@click.option(
    "--samples",
    type=whole(ANSWERS, 0),
    default=8,
    show_default=True,
    help="Rollouts with noise a problem, for pass@k; 0 leaves it out.",
)
@click.option("--max-response", type=whole(COUNT), help="Positions at most.  [default: as trained, else the recipe's]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the samples.  [default: eval in the run folder, else runs/eval/<checkpoint>]",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="One JSON object on stdout; a list for several checkpoints.  [default: a table]",
)
@click.option("--markdown", is_flag=True, help="The table as Markdown on stdout.  [default: columns]")
@click.option(
    "--report",
    is_flag=True,
    help="Write report.html of each run anew: alone, from what is there; with --data and the like, after scoring.  "
    "[default: leave it]",
)
@shared
def evaluate(**options: Any) -> None:
    """Score CHECKPOINTS: Pass@1 without noise, pass@k with noise, lengths of latent and explicit part.

    Each is a run folder, a model folder or a hub name; left out, it is the newest run here. Explicit models are
    scored too. Of several, the later ones are compared to the first, problem by problem. Every sample is kept; stopped
    at any moment, the same command goes on.
    """
    from lgrpo.exam import score

    score.evaluate(score.EvalOptions(**options))


if __name__ == "__main__":
    main()
