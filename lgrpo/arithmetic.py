"""An endless, seeded set of multi-step arithmetic word problems: the data of the embedded `tiny` model.

A problem is first a *plan*, a chain of equations in which each uses the result of the one before, and then a *story*
told around it with random wording, names and objects. The chain of thought is the plan itself:

    Tom has 3 boxes with 12 pens each and gives away 7. How many pens are left?
    <<3*12=36>> <<36-7=29>>                                                        answer 29

The split is made by construction: a plan belongs to the test split when a stable hash of its operations and numbers
falls in one tenth of the range. Wording plays no part, so no test problem can be trained on under another name.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from lgrpo.problems import Problem


@dataclass(frozen=True)
class Level:
    """How hard the problems are: fewest and most equations in a chain, and the largest number that may occur."""

    steps: tuple[int, int]
    largest: int


LEVELS = {"easy": Level((2, 2), 20), "default": Level((2, 3), 99), "hard": Level((4, 5), 999)}
DEFAULT = LEVELS["default"]  # what `tiny` learns: each number up to 99 is one of its tokens

Equation = tuple[int, str, int]  # left, one of + - * /, right
OPERATIONS = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left // right,  # plans only hold divisions that leave nothing over
}

# fmt: off
NAMES = [
    "Tom", "Ann", "Ben", "Mia", "Sam", "Eva", "Leo", "Zoe", "Max", "Lily", "Jack", "Nina", "Omar", "Sara", "Paul",
    "Ruth", "Ravi", "Yuki", "Carl", "Emma", "Kim", "Dan", "Lucy", "Ali", "Nora", "Hugo",
]
THINGS = [
    "pens", "apples", "books", "cards", "eggs", "shells", "stamps", "toys", "marbles", "stickers", "cookies",
    "candles", "flowers", "stones", "keys", "buttons", "hats", "lemons", "nuts", "balls", "ribbons",
]
# fmt: on
CONTAINERS = ["boxes", "bags", "baskets", "jars", "packs", "crates"]

# Clauses that follow a subject. s: the subject; p: a third person; t: the things; c: a container; a, b, n: numbers.
OPENINGS = {
    "plain": [["has {a} {t}"], ["buys {a} {t}"], ["finds {a} {t}"]],
    "pack": [["has {a} {c} with {b} {t} each"], ["buys {a} {c} of {b} {t}"], ["fills {a} {c} with {b} {t} each"]],
    "split": [["splits {a} {t} into {b} equal groups", "keeps one"]],
    "spend": [["has {n} coins", "buys {a} {t} for {b} each"], ["gets {n} coins", "buys {a} {t} for {b} each"]],
    "stock": [["has {n} {t}", "buys {a} {c} of {b}"], ["finds {n} {t}", "gets {a} {c} with {b} each"]],
}
EVENTS = {
    "+": ["buys {n} more", "finds {n} more", "gets {n} from {p}", "gets {n} more"],
    "-": ["gives away {n}", "loses {n}", "sells {n}", "gives {n} to {p}"],
}
COIN_EVENTS = {
    "+": ["finds {n} more", "gets {n} from {p}", "gets {n} more"],
    "-": ["spends {n} more", "loses {n}", "gives {n} to {p}", "gives away {n}"],
}
# Sentences about somebody new, compared with the subject so far, who is the subject from there on.
COMPARISONS = {"+": "has {n} more", "-": "has {n} fewer", "*": "has {n} times as many"}
# A division ends the story; it comes with its own question.
SHARINGS = [
    ("shares them among {n} friends", "How many {t} does each friend get?"),
    ("shares them among {n} friends", "How many does each get?"),
    ("packs them into {c} of {n}", "How many {c} does {s} fill?"),
]
QUESTIONS = [
    "How many {t} does {s} have?",
    "How many {t} does {s} have now?",
    "How many does {s} have in the end?",
    "How many does {s} have now?",
]
QUESTION_AFTER_LOSS = "How many {t} are left?"
NEXT_SENTENCE = "Then {s}"
SMALL_FACTOR = 9  # one side of every product and every divisor stays a single digit


def draw(split: str = "train", seed: int = 0, level: Level = DEFAULT) -> Iterator[Problem]:
    """Problems of a split ("train" or "test") without end; the same arguments give the same problems.

    Within the text every number is between 2 and `level.largest`, results are between 1 and `level.largest`.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it must be 'train' or 'test'")
    rng = random.Random(f"{split} {seed} {level.steps} {level.largest}")
    while True:
        opening, chain = _plan(rng, level)
        if in_test(chain) == (split == "test"):
            cot = " ".join(f"<<{left}{op}{right}={_result(left, op, right)}>>" for left, op, right in chain)
            yield Problem(problem=_story(rng, opening, chain), answer=str(_result(*chain[-1])), cot=cot)


def in_test(chain: list[Equation]) -> bool:
    """Whether a chain belongs to the test split: one in ten, by a hash blind to the order of sums and products."""
    plan = [(op, *(sorted((left, right)) if op in "+*" else (left, right))) for left, op, right in chain]
    return int.from_bytes(blake2b(repr(plan).encode(), digest_size=8).digest(), "big") % 10 == 0


def words() -> list[str]:
    """Every word the generator can use, sorted: the words of the tiny model's vocabulary."""
    clauses = [clause for forms in OPENINGS.values() for form in forms for clause in form]
    events = [event for table in (EVENTS, COIN_EVENTS) for forms in table.values() for event in forms]
    endings = [text for pair in SHARINGS for text in pair] + QUESTIONS + [QUESTION_AFTER_LOSS, NEXT_SENTENCE]
    templates = clauses + events + list(COMPARISONS.values()) + endings
    used = {word for text in templates for word in re.findall(r"[A-Za-z]+", re.sub(r"\{.\}", "", text))}
    return sorted(used | {"and", "coins"} | set(NAMES) | set(THINGS) | set(CONTAINERS))


def _result(left: int, op: str, right: int) -> int:
    return OPERATIONS[op](left, right)


def _plan(rng: random.Random, level: Level) -> tuple[str, list[Equation]]:
    """The kind of opening and the equations, each after the first using the result of the one before."""
    steps, top = rng.randint(*level.steps), level.largest
    opening = rng.choices(["plain", "pack", "split", "spend", "stock"], [4, 4, 1, 1.5, 1.5])[0]
    chain: list[Equation] = []
    value = rng.randint(2, top)
    if opening in ("pack", "spend", "stock"):
        small = rng.randint(2, min(SMALL_FACTOR, top // 2))
        # Where a sum or a payment follows, room is left for it.
        large = rng.randint(2, (top if opening == "pack" else top - 2) // small)
        left, right = (small, large) if rng.random() < 0.5 else (large, small)
        chain.append((left, "*", right))
        value = small * large
        if opening == "spend":
            chain.append((rng.randint(value + 1, top), "-", value))
        elif opening == "stock":
            chain.append((rng.randint(2, top - value), "+", value))
    elif opening == "split":
        divisor = rng.randint(2, min(SMALL_FACTOR, top // 2))
        value = divisor * rng.randint(2, top // divisor)
        chain.append((value, "/", divisor))
    if chain:
        value = _result(*chain[-1])
    while len(chain) < steps:
        may_share = opening != "spend" and len(chain) == steps - 1
        op, number = _event(rng, value, top, may_compare=opening != "spend", may_share=may_share)
        chain.append((value, op, number))
        value = _result(value, op, number)
    return opening, chain


def _event(rng: random.Random, value: int, top: int, may_compare: bool, may_share: bool) -> tuple[str, int]:
    """An operation on `value` whose number and result stay in range.

    Sums are as likely as there is room above and differences as there is room below, which keeps answers spread out.
    """
    divisors = [d for d in range(2, SMALL_FACTOR + 1) if value % d == 0 and value > d]
    weights = {
        "+": 6 * (top - value) / top if value <= top - 2 else 0,
        "-": 6 * value / top if value >= 3 else 0,
        "*": 3 if may_compare and 2 <= value <= top // 2 else 0,
        "/": 2 if may_share and divisors else 0,
    }
    op = rng.choices(list(weights), list(weights.values()))[0]
    if op == "+":
        return op, rng.randint(2, rng.randint(2, top - value))  # twice: people's numbers are small more often than not
    if op == "-":
        return op, rng.randint(2, rng.randint(2, value - 1))
    if op == "*":
        return op, rng.randint(2, min(SMALL_FACTOR, top // value))
    return op, rng.choice(divisors)


def _story(rng: random.Random, opening: str, chain: list[Equation]) -> str:
    """The problem's text. Numbers appear in the order of the story, which need not be the chain's."""
    subject, person, *newcomers = rng.sample(NAMES, len(chain) + 2)  # nobody comes back with another number of things
    thing, container = rng.choice(THINGS), rng.choice(CONTAINERS)
    told = {"plain": 0, "pack": 1, "split": 1, "spend": 2, "stock": 2}[opening]  # equations the opening tells
    first = chain[0]
    slots = {"a": first[0], "b": first[2], "n": chain[1][0], "t": thing, "c": container}
    clauses = [clause.format(**slots) for clause in rng.choice(OPENINGS[opening])]
    counted = "coins" if opening == "spend" else thing
    sentences: list[str] = []
    question = rng.choice(QUESTIONS)
    if chain[-1][1] == "-" and rng.random() < 0.6:
        question = QUESTION_AFTER_LOSS

    def close(clauses: list[str], subject: str) -> None:
        body = clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]
        sentences.append(f"{subject} {body}.")

    start = subject
    for _, op, number in chain[told:]:
        slots = {"n": number, "p": person, "t": counted, "c": container}
        if op == "*" or (op in "+-" and counted == thing and rng.random() < 0.15):
            close(clauses, start)
            clauses = [COMPARISONS[op].format(**slots)]
            subject = start = newcomers.pop()
            if question == QUESTION_AFTER_LOSS:
                question = QUESTIONS[0]
            continue
        if op == "/":
            clause, question = rng.choice(SHARINGS)
        else:
            clause = rng.choice((COIN_EVENTS if counted == "coins" else EVENTS)[op])
        if len(clauses) == 3 or rng.random() < 0.15:
            close(clauses, start)
            clauses, start = [], NEXT_SENTENCE.format(s=subject)
        clauses.append(clause.format(**slots))
    close(clauses, start)
    return " ".join([*sentences, question.format(s=subject, t=counted, c=container)])
