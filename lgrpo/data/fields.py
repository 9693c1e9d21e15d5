r"""Finding problem, answer and chain in a row of somebody's data, by the names of its fields.

Names are compared without regard to case. The first of each list that is there counts:

- problem: `problem`, `question`, `extra_info.question`, `query`, `prompt`, `input`, `question_stem`. A prompt may be a
  list of chat messages (verl's schema): the last user message counts. A known instruction around the problem ("Let's
  think step by step and ...") is taken off, since lgrpo gives its own. A `body` before a `question` (SVAMP) belongs to
  it.
- answer: `final_answer`, `final_ans`, `answer`, `ground_truth`, `reward_model.ground_truth`, `solution`,
  `extra_info.answer`, `target`, `answerKey`. Options to choose from: choices.py.
- chain: `cot`, `steps`, `chain`, `reasoning`, `rationale`, `solution`, then the text the answer was found in, then
  `extra_info.answer`. A list of steps is joined by spaces.

An answer's text may hold more than the answer. In GSM8K's `... <<48/2=24>>24 ... #### 72` the answer follows `####`,
and the chain is the calculator's equations where there are any (`<<48/2=24>>`, GSM8K-Aug's form), else the text before.
In a solution with `\boxed{...}` (MATH) the answer is the last box, and the chain is the whole text.
"""

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from lgrpo.data import choices
from lgrpo.errors import UserError
from lgrpo.text import whole_characters
from lgrpo.verify.answers import boxed

Row = tuple[str, Mapping[str, Any]]  # (place, fields)

PROBLEM = ("problem", "question", "extra_info.question", "query", "prompt", "input", "question_stem")
ANSWER = (
    "final_answer", "final_ans", "answer", "ground_truth", "reward_model.ground_truth", "solution", "extra_info.answer",
    "target", "answerkey", choices.CORRECT,
)  # fmt: skip
CHAIN = ("cot", "steps", "chain", "reasoning", "rationale", "solution")
COLUMNS = frozenset(name.split(".")[0] for name in PROBLEM + ANSWER + CHAIN) | {"body", *choices.COLUMNS}
NAMES = (
    "problem, question, query, prompt or input; "
    "answer, final_answer, ground_truth, solution, target or reward_model.ground_truth"
)

# Instructions that published data carries around its problems, whole sentences at the very beginning or end.
_INSTRUCTIONS = re.compile(
    r"(?:"
    r"(?:Please |Let's |Let us )?(?:reason|think) step by step(?:\.|,? and (?:put|output|give|write) (?:your|the) "
    r"(?:final )?answer (?:within|in|inside|after) (?:\\+boxed\s?\{\}|[\"'`]?####[\"'`]?)\s*\.?)"
    r"|(?:Please )?(?:put|output) (?:your|the) final answer (?:within|in|inside) \\+boxed\s?\{\}\.?"
    r"|Solve the following math problem step by step\.\s*The last line of your response should be of the form Answer: "
    r"\$Answer \(without quotes\) where \$Answer is the answer to the problem\."
    r"|Remember to put your answer on its own line after \"Answer:\"\."
    r")",
    re.IGNORECASE,
)
_MARKS = ("step by step", "boxed", "answer:")  # every instruction holds one of these, most problems none
_EQUATION = re.compile(r"<<[^<>]*>>")
_GROUPED = re.compile(r"-?\$?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")


def problem_answer_chain(row: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """The three texts of a row; the chain is None where it has none. Raises UserError, without saying where."""
    fields = _flat(row)
    problem_field, answer_field = _field(fields, row, "problem", PROBLEM), _field(fields, row, "answer", ANSWER)
    problem = _problem(fields, problem_field)
    if chosen := choices.lettered(fields, problem, fields[answer_field]):
        return *chosen, None
    answer, within = split_answer(_text(fields[answer_field], answer_field))
    if not answer:
        raise UserError(f"the field `{answer_field}` is empty; fill it or take the row out")

    given = (_chain(fields[name], name) for name in CHAIN if fields.get(name) is not None and name != answer_field)
    # A `solution` may be the bare answer once more, which is no chain.
    chain = next((text for text in given if text and split_answer(text) != (answer, None)), within)
    if not chain and isinstance(fields.get("extra_info.answer"), str):
        chain = split_answer(whole_characters(fields["extra_info.answer"]).strip())[1]
    return problem, answer, chain or None


def problem_to_ask(row: Mapping[str, Any]) -> tuple[str, str | None]:
    """The problem's text, and its answer where the row has one that can be read. Raises UserError, not saying where."""
    fields = _flat(row)
    field = _field(fields, row, "problem", PROBLEM)
    problem = _problem(fields, field)
    name = next((name for name in ANSWER if fields.get(name) is not None), None)
    try:
        if name is not None and (chosen := choices.lettered(fields, problem, fields[name])):
            return chosen
        answer = split_answer(_text(fields[name], name))[0] if name is not None else None
    except UserError:  # nothing is to be learnt from it: the problem can be asked all the same
        answer = None
    return problem, answer or None


def _field(fields: Mapping[str, Any], row: Mapping[str, Any], meaning: str, names: Sequence[str]) -> str:
    """The first of these names that the row has."""
    found = next((name for name in names if fields.get(name) is not None), None)
    if found is None:
        empty = next((name for name in names if name in fields), None)
        if empty is not None:
            raise UserError(f"the field `{empty}` is null; give the row its {meaning}, or take it out")
        there = listed([str(name) for name in row])
        raise UserError(f"no field for the {meaning}; fields found: {there}; fields understood: {NAMES}")
    return found


def split_answer(text: str) -> tuple[str, str | None]:
    r"""(answer, chain or None) of a text: an answer alone, `chain #### answer`, or prose with a `\boxed{}`."""
    if "####" in text:
        before, _, answer = text.rpartition("####")
        equations = _EQUATION.findall(before)
        answer = answer.strip()
        if _GROUPED.fullmatch(answer):
            answer = answer.replace(",", "")
        return answer, " ".join(equations) if equations else before.strip() or None
    answer_in_box = boxed(text)
    if answer_in_box is None:
        return text, None
    bare = text.strip("$. \n")
    alone = bare.startswith(("\\boxed", "\\fbox")) and bare.endswith("}") and bare.count("\\boxed") < 2
    return answer_in_box.strip(), None if alone else text


def given_twice(name: str) -> UserError:
    return UserError(f"the field `{name}` is there twice; rename or remove one")


def listed(names: Sequence[str]) -> str:
    """A few names for a message: on one line and harmless to a terminal, whatever they hold."""
    shown = ["".join(sign if sign.isprintable() else "?" for sign in name[:100]) for name in names[:10]]
    return (", ".join(shown) or "none") + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's fields under lower-case names, those of a nested record as `record.field`.

    Raises UserError where one that may be read is there twice.
    """
    fields: dict[str, Any] = {}
    for name, value in row.items():
        name = str(name).strip().lower()
        first = fields.setdefault(name, value)
        if first is not value and first != value and name in COLUMNS:
            raise given_twice(name)
        if isinstance(value, Mapping):
            for inner, inner_value in value.items():
                fields.setdefault(f"{name}.{str(inner).strip().lower()}", inner_value)
    return fields


def _text(value: Any, name: str) -> str:
    """A value as text: 5, 5.0 and ["5"] are "5". Raises UserError for what has no plain text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return whole_characters(value).strip()
    if isinstance(value, (float, Decimal)) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    kind = type(value).__name__ if not isinstance(value, float) else str(value)
    raise UserError(f"the field `{name}` holds {kind} where text or a number is needed")


def _problem(fields: Mapping[str, Any], name: str) -> str:
    """The problem in a field, without instructions around it; behind the story where a `question` has one beside it."""
    problem = _without_instructions(_problem_text(fields[name], name))
    if name == "question" and isinstance(fields.get("body"), str):
        problem = f"{whole_characters(fields['body']).strip()} {problem}".strip()
    if not problem:
        raise UserError(f"the field `{name}` is empty; fill it or take the row out")
    return problem


def _problem_text(value: Any, name: str) -> str:
    """A problem's text; of chat messages, the last one by the user, whose content may come in parts."""
    if not isinstance(value, list):
        return _text(value, name)
    messages = [message for message in value if isinstance(message, Mapping) and message.get("role") == "user"]
    if not messages:
        raise UserError(f"the field `{name}` is a list without a user's message; it must be text or chat messages")
    content = messages[-1].get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = "\n".join(part for part in parts if isinstance(part, str))
    return _text(content, f"{name}.content")


def _chain(value: Any, name: str) -> str:
    steps = value if isinstance(value, list) else [value]
    text = " ".join(_text(step, name) for step in steps if step is not None).strip()
    return (split_answer(text)[1] or "") if "####" in text else text


def _without_instructions(problem: str) -> str:
    """The problem without known instructions before and after it; as it is where nothing else would be left."""
    text = problem
    while any(mark in text.lower() for mark in _MARKS):
        shorter = text
        for match in _INSTRUCTIONS.finditer(text):
            if match.start() == 0:
                shorter = text[match.end() :].strip()
                break
            if match.end() == len(text):
                shorter = text[: match.start()].strip()
                break
        if shorter == text:
            break
        text = shorter
    return text or problem
