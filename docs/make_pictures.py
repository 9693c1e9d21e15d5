"""Draw the pictures of method.md from a trained checkpoint: `python docs/make_pictures.py [MODEL]`.

superposition.svg: one latent step, and a whole chain, of the README's problem. one_sided_noise.svg: the noise, and what
it does to the gradient of the words that were chosen. MODEL is a run folder, a model folder or a hub name; left out, it
is the newest run here. The same checkpoint gives the same pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lgrpo import arithmetic, noise, scoring, session, superposition
from lgrpo.asking import ask
from lgrpo.engine import Engine
from lgrpo.plan import TrainSettings
from lgrpo.policy import Policy
from lgrpo.report.pictures import COLOURS, STYLE
from lgrpo.rollout import LATENT, Request, Rollout

PICTURES = Path(__file__).parent / "pictures"
PROBLEM = "Tom has 3 boxes with 12 pens each and gives away 7. How many pens are left?"
LIKELY = 6  # words of a step that are shown
SEEN = 0.005  # weight: less is not shown
DRAWS = 1 << 20  # of noise
PROBLEMS, SAMPLES = 64, 4  # margins are those of so many problems, and samples of each
LOOK = {**STYLE, "svg.hashsalt": "lgrpo", "svg.fonttype": "path"}  # outlines: a reader's fonts are not ours
MAGENTA, CYAN, GREY, AMBER = (COLOURS[name] for name in ("magenta", "cyan", "grey", "amber"))
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["#ffffff", "#e3a6d3", MAGENTA])


# -- what is drawn, computed


class Step(NamedTuple):
    """A latent step: what the model finds likely, and what it goes on with."""

    likely: Sequence[tuple[str, float]]  # words and probabilities, falling
    kept: Sequence[tuple[str, float]]  # the K words of the superposition and their weights, falling


class Chain(NamedTuple):
    """A noise-free response."""

    steps: Sequence[Step]
    answer: str


def chain_of(policy: Policy, settings: TrainSettings) -> Chain:
    """The noise-free latent chain of PROBLEM, and the answer by its most probable tokens."""
    request = Request(tuple(policy.prompt_ids(PROBLEM, latent=True)), 0, True, 0.0, 0.0)
    (rollout,) = generate(policy, settings, [request])
    with torch.no_grad():
        states = scoring.states_of(policy, scoring.collate(policy, [rollout], settings.tau))
        likely = policy.head(states).softmax(-1).topk(LIKELY)
    weights = superposition.weights_of(rollout.scores, settings.tau)
    steps = [
        Step(_pairs(policy, likely.indices[at], likely.values[at]), _pairs(policy, rollout.indices[at], weights[at]))
        for at in (rollout.tokens == LATENT).nonzero()[:, 0].tolist()
    ]
    return Chain(steps, policy.decode(rollout.hard_tokens[len(policy.end_ids) :]).strip())


def margins_of(policy: Policy, settings: TrainSettings) -> Tensor:
    """Margins [M] of the words chosen in latent steps with noise, under the policy that chose them (method.md, 3)."""
    requests = [
        Request(tuple(policy.prompt_ids(one.problem, latent=True)), noise.row_key(0, one.key, sample), True,
                settings.noise_scale)
        for one in islice(arithmetic.draw("test"), PROBLEMS)
        for sample in range(SAMPLES)
    ]  # fmt: skip
    batch = scoring.collate(policy, generate(policy, settings, requests), settings.tau)
    with torch.no_grad():
        log_probs, _ = scoring.component_logprobs(policy, batch, settings.temperature)
    margins = ((batch.scores - log_probs) / settings.noise_scale)[batch.latent]
    return margins.flatten().double().round(decimals=3)  # the model's own rounding is some 1e-5


def generate(policy: Policy, settings: TrainSettings, requests: Sequence[Request]) -> list[Rollout]:
    engine = Engine(
        policy, settings.latent_settings, settings.text_settings, settings.max_response, settings.slots, print
    )
    return engine.generate(requests)


def noise_of(one_sided: bool) -> Tensor:
    """DRAWS numbers of noise, as a latent step adds them to a log-probability: here to one of 0."""
    zero = torch.zeros(DRAWS, 1)
    draw = noise.gumbel(torch.arange(DRAWS), torch.zeros(DRAWS, dtype=torch.int64), zero.long())
    settings = superposition.LatentSettings(k=1, one_sided=one_sided)
    return superposition.perturb(zero, zero.long(), draw, torch.ones(DRAWS), settings, vocabulary=1).scores[:, 0]


def slope(margin: Tensor) -> Tensor:
    """Derivative of the surrogate by a chosen word's log-probability, where its margin is so."""
    log_prob = torch.zeros_like(margin).requires_grad_()
    superposition.surrogate_logprob(log_prob[:, None], margin[:, None]).sum().backward()
    assert log_prob.grad is not None
    return log_prob.grad


def _pairs(policy: Policy, tokens: Tensor, numbers: Tensor) -> list[tuple[str, float]]:
    texts = [str(policy.tokenizer.decode([token])) for token in tokens.tolist()]
    pairs = zip(texts, numbers.tolist(), strict=True)
    return [(text.strip() or repr(text), round(number, 4)) for text, number in pairs]  # past a model's own rounding


# -- superposition.svg


def superposition_figure(chain: Chain) -> Figure:
    """One step on the left, the chain on the right."""
    at = max(range(len(chain.steps)), key=lambda number: -max(weight for _, weight in chain.steps[number].kept))
    figure = Figure(figsize=(10, 4), layout="constrained", facecolor="white")
    figure.suptitle(PROBLEM, fontsize=10, color=GREY, style="italic")
    likely, kept, whole = figure.subplots(1, 3, width_ratios=[2.1, 1.8, 4.3])
    step, k = chain.steps[at], len(chain.steps[at].kept)
    _bars(likely, step.likely, [MAGENTA] * k + ["#c4c8ce"] * (LIKELY - k))
    likely.set_title(f"Step {at + 1}: what comes next?")
    likely.set_xlabel("probability, of the whole vocabulary")
    _bars(kept, [*step.kept, *[("", 0.0)] * (LIKELY - k)], [MAGENTA] * k)
    kept.set_title(f"It takes {k} at once")
    kept.set_xlabel("weight in the mixture")
    terms = "\n".join(f"{weight:.2f} · E[{_plain(word)}]" for word, weight in step.kept)
    room = kept.get_xlim()[1]
    kept.text(0.05 * room, LIKELY - 0.6, f"The next input is their mixture:\n{terms}", va="bottom", linespacing=1.5)
    _heat(whole, chain, at)
    return figure


def _bars(axes: Any, pairs: Sequence[tuple[str, float]], colours: Sequence[str]) -> None:
    places = range(len(pairs))
    axes.barh(places, [number for _, number in pairs], color=colours, height=0.66)
    for place, (word, number) in enumerate(pairs):
        if word:
            axes.text(number + 0.015, place, _share(number), va="center", color="#374151")
    axes.set_yticks(places, [_plain(word) for word, _ in pairs], family="DejaVu Sans Mono", fontsize=10)
    axes.tick_params(length=0)
    axes.set_xlim(0, 1.25 * max(number for _, number in pairs))
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.grid(visible=False)


def _heat(axes: Any, chain: Chain, marked: int) -> None:
    """Steps across, words down in the order they come up; the answer behind the last step."""
    weights: dict[str, dict[int, float]] = {}
    for number, step in enumerate(chain.steps):
        for word, weight in step.kept:
            if weight >= SEEN:
                row = weights.setdefault(word, {})
                row[number] = row.get(number, 0.0) + weight  # a word with and without its space is one word here
    words, across = list(weights), len(chain.steps)
    cells = [[weights[word].get(number, 0.0) for number in range(across)] for word in words]
    across_edges, down_edges = ([at - 0.5 for at in range(count + 1)] for count in (across, len(words)))
    axes.pcolormesh(across_edges, down_edges, cells, cmap=WEIGHTS, vmin=0, vmax=1)
    for down, row in enumerate(cells):
        for number, weight in enumerate(row):
            if weight >= SEEN:
                colour = "white" if weight > 0.6 else "#374151"
                axes.text(number, down, _share(weight), ha="center", va="center", color=colour)
    place = next((down for down, word in enumerate(words) if f"{{{word}}}" in chain.answer), len(words) // 2)
    axes.annotate(
        _plain(chain.answer), (across - 0.5, place), (across + 0.05, place), va="center", annotation_clip=False,
        family="DejaVu Sans Mono", fontsize=11, weight="bold", color=CYAN,
        arrowprops={"arrowstyle": "<-", "color": CYAN},
    )  # fmt: skip
    axes.set_xlim(-0.5, across + 1.5)
    axes.set_ylim(len(words) - 0.5, -0.5)
    axes.set_xticks([*range(across), across + 0.75], [*map(str, range(1, across + 1)), "answer, in text"])
    axes.get_xticklabels()[marked].set_fontweight("bold")
    axes.set_yticks(range(len(words)), [_plain(word) for word in words], family="DejaVu Sans Mono", fontsize=10)
    axes.set_yticks([down + 0.5 for down in range(len(words) - 1)], minor=True)
    axes.set_xticks([number + 0.5 for number in range(across)], minor=True)
    axes.grid(visible=False)
    axes.grid(visible=True, which="minor")
    axes.add_patch(Rectangle((marked - 0.5, -0.5), 1, len(words), fill=False, edgecolor=GREY, linewidth=1.2))
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("The whole chain: the weights of its words, step by step")
    axes.set_xlabel("latent step", loc="left")


def _share(number: float) -> str:
    return "<.01" if number < SEEN else f"{number:.2f}"[1:] if number < 0.995 else "1.0"


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


# -- one_sided_noise.svg


def noise_figure(two: Tensor, one: Tensor) -> Figure:
    """Densities of the noise, then the gradient's factor over the margins seen with either."""
    figure = Figure(figsize=(10, 3.5), layout="constrained", facecolor="white")
    density, left, right = figure.subplots(1, 3, width_ratios=[3, 4, 4])
    for one_sided, colour, name in ((False, AMBER, "Gumbel, clipped"), (True, MAGENTA, "the same, one-sided")):
        drawn = noise_of(one_sided)
        edges = torch.linspace(float(drawn.min()), float(drawn.max()), 46)
        density.stairs(torch.histogram(drawn, edges, density=True).hist, edges, color=colour, label=name, linewidth=1.5)
    density.axvline(0, color=GREY, linewidth=0.8)
    density.set_title("The noise")
    density.set_xlabel("added to a word's log-probability")
    density.set_ylabel("density (ends: what was clipped)")
    density.set_ylim(0, 0.7)
    density.legend(loc="upper left")
    _slopes(left, two, AMBER, "Two-sided noise")
    _slopes(right, one, MAGENTA, "One-sided noise")
    return figure


def _slopes(axes: Any, margins: Tensor, colour: str, title: str) -> None:
    """The factor of the gradient over the margin, and below it how often each margin came up."""
    low, high = superposition.NOISE_LOW, superposition.NOISE_WIDTH
    x = torch.linspace(low, high, 241, dtype=torch.float64)
    axes.set_axisbelow(True)
    axes.axvspan(low - 0.5, 0, color="#fbe9e7", linewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(x, slope(x), color="#374151", linewidth=1.8)
    axes.text(2.0, 1.05, "1 − exp(−margin)", color="#374151", va="bottom", fontsize=9)
    edges = torch.linspace(low, high + 0.15, 42, dtype=torch.float64)  # what was clipped to 3 or 4.5 has a bin each
    counts = torch.histogram(margins + 1e-6, edges).hist / len(margins)
    axes.stairs(counts * 20 - 5.6, edges, baseline=-5.6, color=colour, fill=True, alpha=0.85)
    below = float((margins < 0).double().mean())
    axes.text(low - 0.4, 1.75, "a good chain's\nwords are\npushed down", color="#b23b2e", va="top", fontsize=8.5)
    axes.text(
        high, -2.6, f"{below:.0%} of the chosen words\nhave a negative margin", ha="right", va="center", color=colour,
        fontsize=9.5, weight="bold",
    )  # fmt: skip
    axes.set_xlim(low - 0.5, high + 0.2)
    axes.set_ylim(-5.6, 1.9)
    axes.set_yticks([-3, -2, -1, 0, 1])
    axes.set_ylabel("push on a chosen word", y=0.67)
    axes.set_xlabel("margin of a chosen word; below: how often")
    axes.set_title(title)


def write(figure: Figure, name: str) -> None:
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(PICTURES / name, format="svg", metadata={"Date": None, "Creator": None})
    print(PICTURES / name)


def main(model: str | None) -> None:
    policy = session.load(model or str(session.newest()), "cpu")
    settings = ask.engine_settings(policy, None, print)
    with matplotlib.rc_context(LOOK):
        write(superposition_figure(chain_of(policy, settings)), "superposition.svg")
        two, one = (margins_of(policy, replace(settings, one_sided=one_sided)) for one_sided in (False, True))
        write(noise_figure(two, one), "one_sided_noise.svg")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
