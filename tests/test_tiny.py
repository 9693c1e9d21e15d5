"""The embedded model and its tokenizer."""

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from lgrpo.arithmetic import LEVELS, draw
from lgrpo.problems import Problem
from lgrpo.tiny import MODEL
from lgrpo.tiny.build import batches, is_right, new_model, prompt_ids, respond, response_ids
from lgrpo.tiny.tokenizer import INSTRUCTION, build_tokenizer

README = Problem(
    problem="Tom has 3 boxes with 12 pens each and gives away 7. How many pens are left?",
    answer="29",
    cot="<<3*12=36>> <<36-7=29>>",
)
NASTY = [
    "  two  spaces \n\n\ttab\r\n end ",
    "naïve café 🙂 👨‍👩‍👧 中文 \u0301\u200d\x00",
    "$\\frac{1}{2}$ and \\boxed{\\sqrt{3}} \\boxed{} \\begin{aligned}",
    "007 100 1234567 3.14 -5 1,000 99 9",
    "<think>x</think> << <<3*12=36>> >>  <<<",
    INSTRUCTION + INSTRUCTION.strip() + " Tom don't ,",
    "<|user|>hi<|end|>",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def test_the_shipped_tokenizer_is_the_one_the_script_builds(tokenizer):
    built = build_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab()
    assert tokenizer.chat_template == built.chat_template
    for text in NASTY:
        assert tokenizer.encode(text) == built.encode(text)
    assert len(tokenizer) <= 620


@pytest.mark.parametrize("text", NASTY)
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_random_text_round_trips(text):
    tokenizer = test_random_text_round_trips.tokenizer
    assert tokenizer.decode(tokenizer.encode(text)) == text


test_random_text_round_trips.tokenizer = build_tokenizer()


def test_a_number_is_one_token_in_a_chain_and_in_a_story(tokenizer):
    for number in range(100):
        assert len(tokenizer.encode(f"{number}")) == len(tokenizer.encode(f" {number}")) == 1


def test_a_large_number_splits_from_the_left(tokenizer):
    pieces = [tokenizer.decode([index]) for index in tokenizer.encode("123 4567 8")]
    assert pieces == ["12", "3", " 45", "67", " 8"]


def test_chain_marks_survive_skip_special_tokens(tokenizer):
    for mark in ("<think>", "</think>"):
        (index,) = tokenizer.encode(mark)
        assert tokenizer.decode([index], skip_special_tokens=True) == mark
    response = response_ids(tokenizer, README)
    text = tokenizer.decode(response, skip_special_tokens=True)
    assert text == "<<3*12=36>> <<36-7=29>></think>\\boxed{29}"


def test_the_readme_prompt_and_response_are_as_short_as_documented(tokenizer):
    assert len(prompt_ids(tokenizer, README)) == 23
    # << 3 * 12 = 36 >>, seven tokens an equation; </think> \boxed{ 29 } <|end|>
    assert len(response_ids(tokenizer, README)) == 7 + 7 + 5


def test_stories_hold_no_byte_but_punctuation(tokenizer):
    known = set(map(tokenizer.convert_tokens_to_ids, [",", ".", "?"]))
    lengths = []
    for problem in itertools.islice(draw("test", 1), 500):
        ids = prompt_ids(tokenizer, problem)
        lengths.append(len(ids))
        assert {index for index in ids if index < 256} <= known | set(tokenizer.encode("0 1 2 3 4 5 6 7 8 9"))
    assert 24 <= sum(lengths) / len(lengths) <= 30
    assert max(lengths) <= 48


def test_the_first_word_of_a_problem_is_one_token(tokenizer):
    ids = tokenizer.encode(INSTRUCTION + "Tom has")
    assert [tokenizer.decode([index]) for index in ids] == [INSTRUCTION, "Tom", " has"]


def test_the_template_opens_the_chain(tokenizer):
    turns = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "<think>x</think>y"},
        {"role": "user", "content": "B"},
    ]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == "<|user|>A<|assistant|><think>x</think>y<|end|><|user|>B<|assistant|><think>"


def test_labels_are_the_response_and_nothing_else(tokenizer):
    ids, labels = next(batches(tokenizer, seed=0))
    first = next(draw("train", 0))
    counted = labels[0] != -100
    assert labels[0][counted].tolist() == response_ids(tokenizer, first)
    # The position with the first label holds `<think>`, the last token of the prompt.
    start = int(counted.nonzero()[0])
    assert ids[0, : start + 1].tolist() == prompt_ids(tokenizer, first)
    assert ids[0, start + 1 : start + int(counted.sum())].tolist() == response_ids(tokenizer, first)[:-1]


def test_the_same_seed_starts_from_the_same_weights(tokenizer):
    one, two = new_model(tokenizer, 5), new_model(tokenizer, 5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_shipped_model_solves_most_problems(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.config.max_position_embeddings >= 1024
    problems = list(itertools.islice(draw("test", 7), 40))
    responses = respond(model, tokenizer, problems, sample=False)
    right = [is_right(tokenizer, ids, problem) for ids, problem in zip(responses, problems, strict=True)]
    assert sum(right) >= 30


def test_the_documented_score_leaves_room_to_learn():
    facts = json.loads((MODEL / "training.json").read_text())
    assert 0.85 <= facts["pass@1"] <= 0.97
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 5_000_000


def test_harder_levels_stay_in_the_vocabulary(tokenizer):
    for problem in itertools.islice(draw("test", 0, LEVELS["hard"]), 50):
        text = problem.problem + problem.cot
        assert tokenizer.decode(tokenizer.encode(text)) == text
