"""Data: whatever form people's files have, the same problems come out, or one line says what is wrong and where."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lgrpo.data import need_chain, read_problems
from lgrpo.data.fields import problem_answer_chain, split_answer
from lgrpo.errors import UserError
from lgrpo.problems import Problem, copies, hold_out, normalised, overlap

Q = "Natalia sold 48 clips in April and half as many in May. How many in all?"
GSM8K = "In May she sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 72"
EQUATIONS = "<<48/2=24>> <<48+24=72>>"
MATH = "Half of 48 is $24$, so the sum is $\\boxed{72}$."


def verl(prompt: str, **extra: Any) -> dict[str, Any]:
    return {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "72"},
        "extra_info": {"split": "train", "index": 0, **extra},
    }


@pytest.mark.parametrize(
    ("row", "answer", "cot"),
    [
        ({"problem": Q, "answer": "72", "cot": EQUATIONS}, "72", EQUATIONS),
        ({"problem": Q, "answer": "72"}, "72", None),
        ({"problem": Q, "answer": "72", "cot": ""}, "72", None),
        ({"problem": Q, "answer": "72", "cot": None, "reasoning": "half is 24"}, "72", "half is 24"),
        ({"problem": Q, "answer": 72}, "72", None),
        ({"problem": Q, "answer": 72.0}, "72", None),
        ({"problem": Q, "answer": 0.5}, "0.5", None),
        ({"problem": Q, "answer": ["72"]}, "72", None),
        ({"Question": f"  {Q}\n", "Final_Answer": " 72 "}, "72", None),
        ({"question": Q, "steps": ["<<48/2=24>>", "<<48+24=72>>"], "answer": "72"}, "72", EQUATIONS),
        ({"question": Q, "answer": GSM8K}, "72", EQUATIONS),
        (
            {"question": Q, "answer": "half is 24, and both are 1,072 #### 1,072"},
            "1072",
            "half is 24, and both are 1,072",
        ),
        ({"problem": Q, "solution": MATH, "level": "1"}, "72", MATH),
        ({"problem": Q, "solution": MATH, "answer": "72"}, "72", MATH),
        ({"problem": Q, "answer": "$\\boxed{72}$"}, "72", None),
        ({"problem": Q, "answer": "72", "cot": "24, 72 #### 72"}, "72", "24, 72"),
        ({"prompt": Q, "solution": "72", "reward_model": {"ground_truth": "72"}}, "72", None),  # DAPO: no chain
        ({"prompt": Q, "solution": "half is 24", "reward_model": {"ground_truth": "72"}}, "72", "half is 24"),
        ({"prompt": Q, "solution": "72"}, "72", None),
        (verl(f'{Q} Let\'s think step by step and output the final answer after "####".'), "72", None),
        (verl("anything", question=Q, answer=GSM8K), "72", EQUATIONS),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": Q}]}], "ground_truth": 72}, "72", None),
        ({"problem": None, "question": Q, "answer": None, "final_answer": "72"}, "72", None),
    ],
)
def test_fields_are_found_by_name(row: dict[str, Any], answer: str, cot: str | None) -> None:
    assert problem_answer_chain(row) == (Q, answer, cot)


@pytest.mark.parametrize(
    "prompt",
    [
        "{}\nLet's think step by step and output the final answer within \\boxed{{}}.",
        '{} Let\'s think step by step and output the final answer after "####".',
        "Please reason step by step, and put your final answer within \\boxed{{}}.\n{}",
        "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
        "{}\n\nPlease put your final answer within \\boxed{{}}.",
        "Let's think step by step.\n{}\nPlease output the final answer within \\boxed{{}}.",
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
        'Remember to put your answer on its own line after "Answer:".',
    ],
)
def test_known_instructions_are_taken_off_the_problem(prompt: str) -> None:
    assert problem_answer_chain({"prompt": prompt.format(Q), "answer": "72"})[0] == Q


@pytest.mark.parametrize(
    "problem",
    [
        "Ann says: let's think step by step. What does Bob say?",
        "Let's think step by step.",  # nothing else would be left
        "What is put within \\boxed{}?",
        "Count step by step. Ann has 3 pens.",
    ],
)
def test_a_problem_that_only_speaks_of_steps_stays_whole(problem: str) -> None:
    assert problem_answer_chain({"problem": problem, "answer": "1"})[0] == problem


def test_the_last_box_is_the_answer_and_a_bare_box_is_no_chain() -> None:
    assert split_answer("\\boxed{1} is too small: \\boxed{\\frac{1}{2}}.") == (
        "\\frac{1}{2}",
        "\\boxed{1} is too small: \\boxed{\\frac{1}{2}}.",
    )
    assert split_answer("\\boxed{3}") == ("3", None)


ROWS = [{"question": f"{Q} ({i})", "answer": str(i), "steps": [f"<<{i}+0={i}>>"]} for i in range(5)]
EXPECTED = [Problem(f"{Q} ({i})", str(i), f"<<{i}+0={i}>>") for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TEXT = "".join(f"{p.problem}||{p.cot} #### {p.answer}\n" for p in EXPECTED)
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES.replace("\n", "\r\n\n")),
        ("a.jsonl", "\ufeff" + LINES),
        ("a.JSONL", LINES.rstrip("\n")),
        ("a.json", LINES),
        ("a.json", json.dumps(ROWS)),
        ("a.jsonl", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=2)),
        ("a.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=2)),
        ("a.json", json.dumps({"test": ROWS[:1], "train": ROWS})),
        ("a.json", json.dumps(COLUMNS)),
        ("a.txt", TEXT),
    ],
)
def test_every_kind_of_file_gives_the_same_problems(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read_problems(tmp_path / name) == EXPECTED
    assert read_problems(str(tmp_path / name), limit=2) == EXPECTED[:2]


def test_line_separators_inside_a_problem_do_not_end_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"problem": "a\u2028b\\nc", "answer": "1"}\n', encoding="utf-8")
    assert read_problems(tmp_path / "a.jsonl") == [Problem("a\u2028b\nc", "1")]


def test_half_a_surrogate_pair_does_not_reach_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"problem": "a\\ud800b", "answer": "1"}\n')
    assert read_problems(tmp_path / "a.jsonl")[0].problem == "a?b"
    (tmp_path / "b.jsonl").write_text('{"problem": "Which?", "choices": ["x", "\\ud800"], "answer": "\\ud800"}\n')
    assert "(B) ?" in read_problems(tmp_path / "b.jsonl")[0].problem
    assert read_problems(tmp_path / "b.jsonl")[0].answer == "B"


def test_parquet_rows_with_nested_records(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=2)
    assert read_problems(tmp_path / "a.parquet") == EXPECTED
    parquet.write_table(arrow.Table.from_pylist([verl("x", question=Q, answer=GSM8K)]), tmp_path / "verl.parquet")
    assert read_problems(tmp_path / "verl.parquet") == [Problem(Q, "72", EQUATIONS)]
    parquet.write_table(arrow.table({"question": [Q], "reply": ["72"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet, row 1: no field for the answer; fields found: reply, question"):
        read_problems(tmp_path / "b.parquet")


def test_parquet_without_pyarrow_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="not installed: pip install pyarrow"):
        read_problems(tmp_path / "a.parquet")


GOOD = b'{"problem": "p", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no problems"),
        ("a.jsonl", b"\n \n", "holds no problems"),
        ("a.json", b"[]", "holds no problems"),
        ("a.json", b"", "not JSON"),
        ("a.tsv", GOOD, "unknown type of file; known are .parquet, .jsonl"),
        ("a", GOOD, "unknown type"),
        ("a.jsonl", GOOD + b'{"problem": "p", "answer"\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", GOOD + b"\n[1]\n", "a.jsonl, line 3: holds a list"),
        ("a.jsonl", GOOD + b"null\n", "line 2: holds null"),
        ("a.jsonl", GOOD + b'{"problem": "\xff", "answer": "1"}\n', "line 2: not UTF-8"),
        ("a.jsonl", GOOD + b'{"problem": ' + b"[" * 100_000 + b"\n", "line 2: nested too deeply"),
        ("a.jsonl", GOOD + b'{"problem": "p", "answer": ' + b"1" * 5_000 + b"}\n", "line 2: not JSON"),
        ("a.json", b'[\n{"problem": "p", "answer": "1"},\n{]', "a.json, line 3: not JSON"),
        ("a.json", b'[{"problem": "p", "answer": "1"}, 5]', "row 2: holds a number"),
        ("a.json", b'"text"', "holds text where a list"),
        ("a.json", b'{"a": [{"problem": "p"}], "b": [{"problem": "p"}]}', r"several lists \(a, b\)"),
        ("a.json", b'{"question": ["p", "q"], "answer": ["1"]}', "columns differ in length"),
        ("a.txt", b"p||c #### 1\np c 1\n", "a.txt, line 2: not of the form"),
        ("a.txt", b"p||c #### \n", "line 1: the field `answer` is empty"),
        ("a.parquet", b"PAR1 is not all it takes", "not a Parquet file"),
        ("a.parquet", b"", "not a Parquet file"),
        (
            "a.jsonl",
            b'{"problem": "p", "reply": "1"}\n',
            "line 1: no field for the answer; fields found: problem, reply",
        ),
        ("a.jsonl", b'{"text": "p", "answer": "1"}\n', "no field for the problem; fields found: text, answer"),
        ("a.jsonl", b"{}\n", "no field for the problem; fields found: none"),
        ("a.jsonl", b'{"\\u001b[2J\\n": 1}\n', r"fields found: \?\[2J\?;"),  # no way to the terminal
        ("a.jsonl", b'{"problem": "p", "Answer": "1", "answer": "2"}\n', "line 1: the field `answer` is there twice"),
        ("a.csv", b"problem,answer, Answer\np,1,2\n", "line 1: the field `answer` is there twice; rename or remove"),
        ("a.jsonl", b'{"problem": null, "answer": "1"}\n', "line 1: the field `problem` is null"),
        ("a.jsonl", b'{"problem": "p", "answer": null}\n', "the field `answer` is null"),
        ("a.jsonl", b'{"problem": " ", "answer": "1"}\n', "the field `problem` is empty"),
        ("a.jsonl", b'{"problem": "p", "answer": ""}\n', "the field `answer` is empty"),
        ("a.jsonl", b'{"problem": "p", "answer": "\\\\boxed{}"}\n', "the field `answer` is empty"),
        ("a.jsonl", b'{"problem": "p", "answer": NaN}\n', "`answer` holds nan"),
        ("a.jsonl", b'{"problem": "p", "answer": true}\n', "`answer` holds bool"),
        ("a.jsonl", b'{"problem": "p", "answer": ["1", "2"]}\n', "`answer` holds list"),
        ("a.jsonl", b'{"problem": "p", "answer": {"a": 1}}\n', "`answer` holds dict"),
        ("a.jsonl", b'{"problem": ["p"], "answer": "1"}\n', "`problem` is a list without a user's message"),
        ("a.jsonl", b'{"prompt": [{"role": "user"}], "answer": "1"}\n', "`prompt.content` holds NoneType"),
    ],
)
def test_bad_data_is_one_line_with_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_problems(tmp_path / name)
    assert str(raised.value).startswith(str(tmp_path / name))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "no/where.jsonl", "x" * 5_000, "a\0b"])
def test_a_missing_file_says_what_data_may_be(source: str) -> None:
    with pytest.raises(UserError, match=r"no such file|cannot be read"):
        read_problems(source)


def test_limit_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one"):
        read_problems(tmp_path, limit=0)


@pytest.mark.parametrize(
    ("files", "split", "read"),
    [
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["gsm8k_eq_train.jsonl", "dev.jsonl"], "validation", ["dev.jsonl"]),
        (["a.jsonl"], "train", ["a.jsonl"]),
        (["a.jsonl", "test.jsonl", "README.md", ".hidden.jsonl", "dataset_info.json"], "train", ["a.jsonl"]),
        (["train-1-of-2.txt", "train-2-of-2.txt"], "train", ["train-1-of-2.txt", "train-2-of-2.txt"]),
        (["data/train-1.jsonl", "algebra/train-1.jsonl"], "train", ["data/train-1.jsonl"]),
        (["main/train.jsonl", "socratic/train.jsonl"], "train", ["main/train.jsonl"]),
        (["default/train/0.txt", "default/train/1.txt"], "train", ["default/train/0.txt", "default/train/1.txt"]),
        (["train.jsonl", "train.txt"], "train", ["train.jsonl"]),
    ],
)  # fmt: skip
def test_a_folder_gives_the_files_of_the_split(tmp_path: Path, files: list[str], split: str, read: list[str]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        row = f"{name}||c #### 1" if name.endswith(".txt") else json.dumps({"problem": name, "answer": "1"})
        (tmp_path / name).write_text(row)
    assert [problem.problem for problem in read_problems(tmp_path, split)] == read


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ([], "train", "no data file"),
        (["README.md"], "train", "no data file"),
        (["train.jsonl"], "test", "no file for the split `test` among train.jsonl"),
        (["test.jsonl"], "train", "no file for the split `train`"),
        (["train_easy.jsonl", "train_hard.jsonl"], "train", "several files for the split `train`"),
        (["cn/train.jsonl", "en/train.jsonl"], "train", "several data sets; choose one as .*/FOLDER, of cn, en"),
    ],
)
def test_an_unclear_folder_is_not_guessed(tmp_path: Path, files: list[str], split: str, message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(GOOD)
    with pytest.raises(UserError, match=message):
        read_problems(tmp_path, split)


def test_hub_files_come_from_the_cache_when_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"openai/gsm8k is not in the cache .* \(HF_HUB_OFFLINE is set\)"):
        read_problems("gsm8k")
    repository = tmp_path / "datasets--openai--gsm8k"
    for name in ("main/train-0.txt", "main/test-0.txt", "socratic/train-0.txt"):
        (repository / "snapshots" / "abc" / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / "snapshots" / "abc" / name).write_text(f"{name}||c #### 1\n")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert [problem.problem for problem in read_problems("gsm8k")] == ["main/train-0.txt"]
    assert [problem.problem for problem in read_problems("openai/gsm8k", "test")] == ["main/test-0.txt"]
    assert [problem.problem for problem in read_problems("openai/gsm8k:socratic")] == ["socratic/train-0.txt"]
    with pytest.raises(UserError, match="no data file under nothing"):
        read_problems("openai/gsm8k:nothing")


def test_hub_files_are_listed_and_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    fetched = []

    def list_files(self: object, name: str, repo_type: str) -> list[str]:
        assert (name, repo_type) == ("whynlp/gsm8k-aug", "dataset")
        return ["README.md", ".gitattributes", "data/train-0.txt", "data/test-0.txt"]

    def fetch(name: str, file: str, repo_type: str) -> str:
        fetched.append(file)
        (tmp_path / "train.txt").write_text(TEXT)
        return str(tmp_path / "train.txt")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert read_problems("gsm8k-aug") == EXPECTED
    assert fetched == ["data/train-0.txt"]


def test_a_file_or_folder_here_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner/name").mkdir(parents=True)
    Path("owner/name/train.txt").write_text(TEXT)
    assert read_problems("owner/name") == EXPECTED


def test_the_generator_is_a_source() -> None:
    assert len(read_problems("arithmetic", limit=7)) == 7
    test = read_problems("arithmetic:easy", "test", limit=30)
    assert overlap(test, read_problems("arithmetic:easy", limit=200)) == 0
    with pytest.raises(UserError, match="has no level 'silly'; it has easy"):
        read_problems("arithmetic:silly")
    with pytest.raises(UserError, match="has no split 'dev'"):
        read_problems("arithmetic", "dev")


def test_key_is_the_same_on_every_machine() -> None:
    # The 64-bit BLAKE2b of the text, halved. Seeds of published runs depend on it.
    key = Problem("Ann has 3 pens.", "3").key
    assert key == 0xF3804E92EC8288DE >> 1
    assert key == Problem("Ann has 3 pens.", "4", "other").key
    assert 0 <= Problem("\ud800", "1").key < 2**63


def test_chains_are_needed_and_counted() -> None:
    problems = [Problem("a", "1", "c"), Problem("b", "1"), Problem("c", "1", "")]
    assert need_chain(problems) == ([Problem("a", "1", "c")], 2)
    with pytest.raises(UserError, match="none of the 2 problems has a chain"):
        need_chain(problems[1:])


def test_held_out_problems_are_never_trained_on_in_any_spelling() -> None:
    problems = [Problem(f"Problem {i}?", str(i)) for i in range(100)]
    copies = [Problem(f"problem, {i}.", str(i)) for i in range(100)]
    train, held_out = hold_out(problems + copies, 20, seed=1)
    assert len(held_out) == 20
    assert len({normalised(problem.problem) for problem in held_out}) == 20
    assert overlap(train, held_out) == 0
    assert len(train) == 160
    assert set(held_out) <= set(problems)  # the first copy
    assert [p for p in problems + copies if p in train] == train  # order kept


def test_held_out_problems_depend_on_the_seed_and_not_on_the_order() -> None:
    problems = [Problem(f"Problem {i}?", str(i)) for i in range(100)]
    held_out = hold_out(problems, 20, seed=1)[1]
    assert set(hold_out(problems[::-1], 20, seed=1)[1]) == set(held_out)
    assert set(hold_out(problems, 20, seed=2)[1]) != set(held_out)
    assert set(hold_out(problems, 10, seed=1)[1]) < set(held_out)
    for count in (0, -1, 100):
        with pytest.raises(UserError, match="cannot be held out"):
            hold_out(problems, count, seed=1)


def test_overlap_sees_through_spelling() -> None:
    a = [Problem("Ann has 3 pens.", "3"), Problem("Ann has 3 pens", "3"), Problem("Ben?", "1")]
    assert overlap(a, [Problem("ann has  3 PENS!", "3"), Problem("Zoe", "1")]) == 1
    assert overlap([Problem("+", "1")], [Problem("-", "1")]) == 0


@pytest.mark.parametrize(
    "texts",
    [
        ("What is 3 + 4?", "What is 3 - 4?", "What is 3 * 4?", "What is 3 / 4?", "What is 34?", "What is 3^4?"),
        ("x < 3", "x > 3", "x = 3", "x <= 3", "x \u2264 3"),
        ("-5", "5", "5!", "5%", ".5"),
        ("(1, 2)", "(12)", "1 2", "12", "1.2", "1:2", "1, 2"),
        (r"\frac{1}{23}", r"\frac{12}{3}", "1 2/3", "12/3"),
        ("(1 + 2) * 3", "1 + (2 * 3)", "[1 + 2) * 3"),
        ("f(x) = n", "f'(x) = n", "f(x) = n!"),
        ("a - b", "a + b", "ab"),
    ],
)
def test_what_decides_a_problem_is_no_spelling(texts: tuple[str, ...]) -> None:
    assert len(set(map(normalised, texts))) == len(texts)


@pytest.mark.parametrize(
    "texts",
    [
        (
            "Ann\u2019s twenty-five cents: $1,000.50.",
            "ann's  twenty five cents, 1000.50",
            "Anns twentyfive Cents $1000.50",
        ),
        ("So, \u201cwhat\u201d is $x_1$ \u2212 3?", "so what is x1 - 3", "'So what is x1 \u2013 3."),
        ("The dogs' food; the end \u2026", "the dogs food\nThe end!"),
    ],
)
def test_spellings_of_one_problem_are_one(texts: tuple[str, ...]) -> None:
    assert len(set(map(normalised, texts))) == 1


def test_expressions_are_no_copies_of_each_other() -> None:
    texts = [f"What is {a} {sign} {b}?" for a in range(1, 31) for b in range(1, 11) for sign in "+-*"]
    assert copies([Problem(text, "1") for text in texts]) == (0, 0)
    train, held_out = hold_out([Problem(text, "1") for text in texts], 200, seed=0)
    assert (len(train), len(held_out)) == (700, 200)


def test_copies_are_counted_by_normalised_text_and_those_with_another_answer_apart() -> None:
    rows = [("What is 1?", "1"), ("what is 1", "1"), ("What is 2?", "2"), ("WHAT IS 2", "3"), ("What is 2?", "2")]
    assert copies([Problem(*row) for row in rows]) == (3, 1)
    assert copies([Problem("a", "1"), Problem("b", "1")]) == (0, 0)
