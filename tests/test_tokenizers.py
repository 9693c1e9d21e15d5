"""Real tokenizers of whole vocabularies: markers, prompts, examples, rollouts and scores.

They are not part of the project. Put folders `qwen3` and `llama3` with their tokenizer files into `shared/tokenizers`
beside the repository, or name the folder that holds them in LGRPO_TOKENIZERS. `<think>` is one token in the first and
three in the second, where `</think>` begins with the piece `</`.
"""

import os
from pathlib import Path

import models
import pytest
import reference
import torch
from models import LATENTS, TEXTS

from lgrpo import noise, scoring
from lgrpo.engine import Engine
from lgrpo.latent_sft import supervision_mask
from lgrpo.latent_sft.build import decoder_row
from lgrpo.latent_sft.examples import LATENT, PAD, encode
from lgrpo.policy import Card, Policy
from lgrpo.problems import Problem
from lgrpo.rollout import Request, Rollout

FOLDER = Path(os.environ.get("LGRPO_TOKENIZERS") or Path(__file__).parents[2] / "shared" / "tokenizers")
MARKERS = {"qwen3": (1, 1), "llama3": (3, 3)}  # tokens of <think> and </think>
QUESTION = "Tom has 3 boxes with 12 pens each and gives away 7. How many pens are left? 多少 é 😀"
LIMIT = 8
PLAINLY = 3  # rollouts that are compared with the plain loop, which sorts all words at each step


def policy_of(name: str, dtype: torch.dtype = torch.float64) -> Policy:
    """A random model of the tokenizer's vocabulary, so narrow that its whole head is looked at in no time."""
    from transformers import AutoTokenizer

    if not (FOLDER / name / "tokenizer.json").is_file():
        pytest.skip(f"no tokenizer {name} in ../shared/tokenizers; name its folder in LGRPO_TOKENIZERS")
    tokens = AutoTokenizer.from_pretrained(FOLDER / name)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
    model = models.model("llama", len(tokens) + 40, dtype, seed=3, sharpness=1.5, **shape)  # rows to spare, as usual
    return Policy(model, tokens, Card("latent", "tiny", LATENTS.k), name)


@pytest.fixture(params=MARKERS)
def policy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Policy:
    models.compute_in_float64(monkeypatch)
    return policy_of(request.param)


def test_markers_are_what_the_tokenizer_makes_of_them(policy: Policy) -> None:
    assert (len(policy.begin_ids), len(policy.end_ids)) == MARKERS[policy.name]
    assert policy.tokenizer.decode(policy.begin_ids) == "<think>"
    assert policy.tokenizer.decode(policy.end_ids) == "</think>"
    assert policy.end_id == policy.end_ids[0]
    if policy.name == "llama3":
        assert policy.end_id == 524
        assert policy.piece(524) == "</"
    assert policy.pad_id in range(len(policy.tokenizer))
    assert policy.tokenizer.eos_token_id in policy.eos_ids


def test_a_prompt_has_the_question_whole_and_ends_with_the_marker_once(policy: Policy) -> None:
    latent, explicit = policy.prompt_ids(QUESTION, latent=True), policy.prompt_ids(QUESTION, latent=False)
    assert latent == explicit + policy.begin_ids  # neither template ends with <think>
    shown = policy.tokenizer.decode(latent)
    assert shown.count(QUESTION) == 1
    assert shown.count("<think>") == 1
    assert shown.endswith("assistant<|end_header_id|>\n\n<think>" if policy.name == "llama3" else "assistant\n<think>")
    begin = policy.tokenizer.bos_token_id
    assert begin is None or latent.count(begin) == 1
    # A problem that spells the marker does not become one where it ends.
    assert policy.prompt_ids("What does <think> mean?", latent=True)[-len(policy.begin_ids) :] == policy.begin_ids


PROBLEMS = [
    Problem(QUESTION, "29", "<<3*12=36>> <<36-7=29>>"),
    Problem("Half of 7?", "7/2", "Half of seven is three and a half.\n\nSo 7/2.</b>"),
    Problem("What is $x$?", "\\frac{1}{2}", "é 😀 多"),
]


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_examples_go_there_and_back(policy: Policy, ratio: int) -> None:
    """Prompt, chain and response decode to the texts they were made of; rows and mask know where the answer begins."""
    encoded = encode(policy, PROBLEMS, ratio, 512, 512, 512)
    assert (len(encoded.examples), encoded.without_chain, encoded.too_long) == (3, 0, 0)
    decode = policy.tokenizer.decode
    for problem, example in zip(PROBLEMS, encoded.examples, strict=True):
        assert list(example.prompt) == policy.prompt_ids(problem.problem, latent=True)
        assert decode(example.chain, clean_up_tokenization_spaces=False) == problem.cot
        assert list(example.response[: len(policy.end_ids)]) == policy.end_ids
        assert example.response[-1] == policy.eos_ids[0]
        assert decode(example.response[:-1]) == f"</think>\\boxed{{{problem.answer}}}"
        assert policy.decode(example.response) == decode(example.response[:-1])  # no special token is shown
        ids, _ = decoder_row(example, ratio)
        assert ids.count(LATENT) == example.latents(ratio) == -(-len(example.chain) // ratio)
        # The prompt is what a latent sees; a piece of the marker within the chain (`</b>`) does not begin the answer.
        allowed = supervision_mask(torch.tensor([ids]), LATENT, policy.end_ids, PAD)[0]
        last = max(at for at, token in enumerate(ids) if token == LATENT)
        answer = list(range(last + 1, len(ids)))
        assert ids[last + 1 : last + 1 + len(policy.end_ids)] == policy.end_ids
        seen = [at for at in range(len(ids)) if bool(allowed[-1, at])]
        latents = [at for at, token in enumerate(ids) if token == LATENT]
        assert seen == [*range(len(example.prompt)), *latents, *answer]


def rolled_out(policy: Policy) -> tuple[list[Request], list[Rollout]]:
    """Rollouts of which some end their chain: the marker's first token is made probable."""
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[policy.end_id] *= 3
    prompts = [tuple(policy.prompt_ids(text, latent=True)) for text in ("2 + 2?", "What is 6 * 7?")]
    requests = [
        Request(prompts[n % 2], noise.row_key(0, n % 2, n), noise_scale=[1.0, 0.0, 0.5][n % 3]) for n in range(8)
    ]
    return requests, Engine(policy, LATENTS, TEXTS, LIMIT, 4).generate(requests)


def test_rollouts_equal_the_plain_loop_and_score_as_they_were_made(policy: Policy) -> None:
    """Over the whole vocabulary, the engine's short list and blocks of it against a plain sort of all words.

    The chain ends with the first token of the marker; the rest of a marker of several is ordinary text.
    """
    requests, rollouts = rolled_out(policy)
    for request, rollout in list(zip(requests, rollouts, strict=True))[:PLAINLY]:
        with torch.no_grad():
            expected = reference.generate(policy, request, LATENTS, TEXTS, LIMIT)
        assert rollout.tokens.tolist() == expected.tokens
        assert rollout.logprob.tolist() == pytest.approx(expected.logprob, abs=1e-9)
        for at, indices in enumerate(expected.indices):
            assert rollout.indices[at].tolist() == (indices or [0] * LATENTS.k)
    ended = [rollout for rollout in rollouts if 0 < rollout.latent_length < rollout.length - 1]
    assert ended
    for rollout in ended:
        assert rollout.hard_tokens[0] == policy.end_id
        assert rollout.tokens.tolist().index(policy.end_id) == rollout.latent_length
    ordered = sorted(rollouts, key=lambda rollout: rollout.prompt)
    batch = scoring.collate(policy, ordered, LATENTS.tau)
    with torch.no_grad():
        components, hard = scoring.component_logprobs(policy, batch, TEXTS.temperature)
        scored = scoring.logprob(components, hard, batch, LATENTS)
    for row, rollout in zip(scored, ordered, strict=True):
        assert row[: rollout.length].tolist() == pytest.approx(rollout.logprob.tolist(), abs=1e-9)
