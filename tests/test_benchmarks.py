"""Benchmarks by name: the right files of the hub, the right split, the right columns; options get letters."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lgrpo.data import read_problems
from lgrpo.data.benchmarks import BENCHMARKS, known
from lgrpo.data.choices import lettered
from lgrpo.data.fields import problem_answer_chain
from lgrpo.data.hub import ALIASES
from lgrpo.errors import UserError
from lgrpo.problems import Problem

GPQA = {
    "Record ID": "rec1",
    "Question": "Which of these is even?",
    "Correct Answer": "4\n",
    "Incorrect Answer 1": "3",
    "Incorrect Answer 2": "5",
    "Incorrect Answer 3": "7",
    "Explanation": "4 = 2 * 2",
    "Extra Revised Question": "",
}
SVAMP = {
    "ID": "chal-777", "Body": "There are 290 bananas in 2 groups", "Question": "How big is each group?",
    "Equation": "( 290.0 / 2.0 )", "Answer": "145.0", "Type": "Common-Division",
}  # fmt: skip
# What each data set of the hub holds (looked up in November 2026), the benchmark's file, a row, and what that means.
PUBLISHED: dict[str, tuple[list[str], str, dict[str, Any], tuple[str, str]]] = {
    "gsm-hard": (
        ["README.md", "gsmhardv2.jsonl"],
        "gsmhardv2.jsonl",
        {"input": "A robe takes 2287720 bolts.", "code": "def solution(): ...", "target": 3431580.0},
        ("A robe takes 2287720 bolts.", "3431580"),
    ),
    "svamp": (
        [
            "README.md",
            "data/test-00000-of-00001.parquet",
            "data/train-00000-of-00001.parquet",
            "test.json",
            "train.json",
        ],
        "test.json",
        SVAMP,
        ("There are 290 bananas in 2 groups How big is each group?", "145.0"),
    ),
    "multiarith": (
        ["test.json", "train.json"],
        "test.json",
        {"question": "How many cups?", "final_ans": "55"},
        ("How many cups?", "55"),
    ),
    "math500": (
        ["README.md", "test.jsonl"],
        "test.jsonl",
        {"problem": "Half of 1?", "solution": "It is $\\boxed{0.5}$.", "answer": "\\frac{1}{2}", "level": 1},
        ("Half of 1?", "\\frac{1}{2}"),
    ),
    "aime24": (
        ["README.md", "data/train-00000-of-00001.parquet"],
        "data/train-00000-of-00001.parquet",
        {"id": 60, "problem": "Every morning?", "solution": "\\boxed{204}", "answer": "204", "year": "2024"},
        ("Every morning?", "204"),
    ),
    "aime25": (
        ["README.md", "test.jsonl"],
        "test.jsonl",
        {"problem": "All bases?", "answer": "70", "id": "0"},
        ("All bases?", "70"),
    ),
    "gpqa": (
        ["README.md", "dataset.zip", "gpqa_diamond.csv", "gpqa_experts.csv", "gpqa_extended.csv", "gpqa_main.csv"],
        "gpqa_diamond.csv",
        GPQA,
        (
            "Which of these is even?\n(A) 7\n(B) 3\n(C) 4\n(D) 5\n"
            "Answer with the letter of the right option: A, B, C or D.",
            "C",
        ),
    ),
    "gsm8k": (
        [f"{part}/{split}-00000-of-00001.parquet" for part in ("main", "socratic") for split in ("train", "test")],
        "main/test-00000-of-00001.parquet",
        {"question": "Janet's ducks?", "answer": "16 - 3 = <<16-3=13>>13\n#### 13"},
        ("Janet's ducks?", "13"),
    ),
    "gsm8k-aug": (
        ["README.md", "train.jsonl", "valid.jsonl", "test.jsonl"],
        "test.jsonl",
        {"question": "Janet's ducks?", "steps": ["<<16-3=13>>"], "answer": "13"},
        ("Janet's ducks?", "13"),
    ),
}


def write(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist([row]), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
    else:
        path.write_text(json.dumps([row], indent=1) if path.suffix == ".json" else json.dumps(row) + "\n")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A hub that holds what `PUBLISHED` says; the list is of what was fetched from it."""
    import huggingface_hub
    from huggingface_hub import constants

    fetched: list[str] = []
    by_source = {ALIASES[name].split(":")[0]: name for name in PUBLISHED}

    def list_files(self: object, name: str, repo_type: str) -> list[str]:
        return PUBLISHED[by_source[name]][0]

    def fetch(name: str, file: str, repo_type: str) -> str:
        fetched.append(file)
        write(tmp_path / file, PUBLISHED[by_source[name]][2])
        return str(tmp_path / file)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return fetched


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_benchmark_is_its_file_of_the_hub_read_by_its_columns(name: str, hub: list[str]) -> None:
    _, file, _, meaning = PUBLISHED[name]
    problems = read_problems(name, BENCHMARKS[name].split)
    assert hub == [file]
    assert [(problem.problem, problem.answer) for problem in problems] == [meaning]


def test_every_benchmark_is_either_the_generator_or_on_the_hub() -> None:
    assert {"arithmetic", *PUBLISHED} == set(BENCHMARKS)
    assert set(PUBLISHED) <= set(ALIASES)


def test_a_benchmark_is_known_by_any_of_its_names() -> None:
    assert known("aime24") == known("HuggingFaceH4/aime_2024") == ("train", 64)
    assert known("math-500") == known("math500") == known("HuggingFaceH4/MATH-500") == ("test", 4)
    assert known("gpqa") == known("Idavidrein/gpqa:gpqa_diamond.csv") == ("train", 8)
    assert known("arithmetic:hard") == known("arithmetic") == ("test", 5)
    assert known("owner/name") is None
    assert known("test.jsonl") is None


@pytest.mark.parametrize("where", ["list_repo_files", "hf_hub_download"])
def test_a_gated_benchmark_says_what_to_accept(where: str, hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    class Gated(GatedRepoError):
        def __init__(self) -> None:
            Exception.__init__(self, "403 Client Error")

    def refuse(*_: Any, **__: Any) -> None:
        raise Gated

    monkeypatch.setattr(huggingface_hub.HfApi if where == "list_repo_files" else huggingface_hub, where, refuse)
    with pytest.raises(UserError, match=r"gpqa: .* Idavidrein/gpqa only to those who accepted its conditions; accept"):
        read_problems("gpqa", "train")


def test_options_stand_in_the_same_order_whatever_the_order_of_columns_and_depend_on_the_problem() -> None:
    turned = problem_answer_chain(dict(reversed(GPQA.items())))
    assert turned == problem_answer_chain(GPQA)
    letters = {problem_answer_chain({**GPQA, "Question": f"Which? {number}"})[1] for number in range(40)}
    assert letters == set("ABCD")


@pytest.mark.parametrize(
    ("row", "options", "letter"),
    [
        ({"choices": ["3", "4", "5"], "answer": 1}, "(A) 3\n(B) 4\n(C) 5", "B"),
        ({"choices": ["1", "2"], "answer": 1}, "(A) 1\n(B) 2", "B"),  # a number is a place
        ({"options": ["1", "2"], "answer": "1"}, "(A) 1\n(B) 2", "A"),  # a text is rather an option
        ({"options": ["3", "4"], "answer": "b"}, "(A) 3\n(B) 4", "B"),
        ({"options": ["A) 3", "B) 4"], "answer": "B"}, "(A) 3\n(B) 4", "B"),
        ({"options": ["A", "B"], "answer": "0"}, "(A) A\n(B) B", "A"),
        ({"options": ["3", "4"], "answer": "(B)"}, "(A) 3\n(B) 4", "B"),
        ({"options": ["3", "4"], "answer": "b)"}, "(A) 3\n(B) 4", "B"),
        ({"options": ["3", "4"], "answer": "B) 4"}, "(A) 3\n(B) 4", "B"),
        # ARC, CommonsenseQA: texts beside labels, which may be digits and then count from 1
        ({"choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"}, "(A) 3\n(B) 4", "B"),
        (
            {"choices": {"label": ["1", "2", "3"], "text": ["3", "4", "1"]}, "answerKey": "2"},
            "(A) 3\n(B) 4\n(C) 1",
            "B",
        ),
        ({"choices": {"label": ["B", "A"], "text": ["4", "3"]}, "answer": "(A)"}, "(A) 4\n(B) 3", "B"),
        ({"choices": {"label": ["A", "B"], "text": ["3", "4"]}, "answer": 1}, "(A) 3\n(B) 4", "B"),
        ({"choices": {"label": ["1", "2"], "text": ["2", "1"]}, "answer": 2}, "(A) 2\n(B) 1", "B"),
        ({"choices": [{"label": "A", "text": "3"}, {"label": "B", "text": "4"}], "answer": "B"}, "(A) 3\n(B) 4", "B"),
        ({"choices": ["False", "True"], "answer": True}, "(A) False\n(B) True", "B"),
    ],
)
def test_a_list_of_options_is_lettered_and_the_answer_is_the_letter(
    row: dict[str, Any], options: str, letter: str
) -> None:
    problem, answer, chain = problem_answer_chain({"question": "Which is even?", **row})
    assert problem.startswith(f"Which is even?\n{options}\nAnswer with the letter")
    assert (answer, chain) == (letter, None)


def test_the_science_questions_of_openbookqa_are_read() -> None:
    row = {"question_stem": "Which is even?", "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"}
    problem, answer, _ = problem_answer_chain(row)
    assert problem.startswith("Which is even?\n(A) 3\n(B) 4\nAnswer with the letter")
    assert answer == "B"


def test_rows_without_options_are_as_they_were() -> None:
    assert lettered({"choices": {"text": [], "label": []}}, "p", "1") is None
    assert lettered({"choices": {"a": 1}}, "p", "1") is None
    assert lettered({"options": None, "choices": []}, "p", "1") is None
    assert problem_answer_chain({"problem": "p", "answer": "1", "options": None}) == ("p", "1", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["3", "4"], "answer": "7"}, "no letter, place or text of one of the 2 `choices`"),
        ({"choices": [None, "4"], "answer": "B"}, "`choices` holds NoneType where an option's text is needed"),
        ({"choices": ["3", ["4"]], "answer": "A"}, "`choices` holds list where an option's text is needed"),
        ({"choices": ["3", "4"], "answer": True}, "no letter, place or text of one of the 2 `choices`"),
        ({"choices": ["3", "4"], "answer": "C) 5"}, "no letter, place or text of one of the 2 `choices`"),
        ({"choices": ["3", "4"], "answer": "A or B"}, "no letter, place or text of one of the 2 `choices`"),
        ({"choices": {"text": ["3", "4"], "label": ["1", "2"]}, "answer": "0"}, "no letter, place or text of one"),
        ({"choices": {"text": ["3", "4"], "label": ["A"]}, "answer": "A"}, "`choices`: 2 texts and 1 labels"),
        ({"choices": ["3"], "answer": "A"}, "`choices`: 1 options"),
        ({"choices": [str(n) for n in range(11)], "answer": 3}, "11 options; a choice needs 2 to 10"),
        ({"Correct Answer": "4"}, "`correct answer`: 1 options"),
    ],
)
def test_options_that_cannot_be_used_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "q", **row}))
    with pytest.raises(UserError, match=message) as raised:
        read_problems(tmp_path / "a.jsonl")
    assert str(raised.value).startswith(f"{tmp_path / 'a.jsonl'}, line 1: ")


def test_csv_is_read_with_quotes_empty_cells_and_the_line_of_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfid,question,answer,cot\r\n1,"one, or\ntwo?",2,\r\n2,three?,3,1+2\r\n')
    assert read_problems(path) == [Problem("one, or\ntwo?", "2"), Problem("three?", "3", "1+2")]
    for content, message in {
        b"question,answer\nq,1,2\n": "line 2: not as many fields as the 2 names",
        b"question,answer\nq\n": "line 2: not as many fields",
        b'question,answer\nq,"1\n': "line 3: not CSV|line 2: not CSV",
        b"question,answer\n\xff,1\n": "not UTF-8",
        b"question,answer\nq,\n": "line 2: the field `answer` is null",
        b"question,reply\nq,1\n": "line 2: no field for the answer; fields found: question, reply",
        b"": "holds no problems",
    }.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_problems(path)
