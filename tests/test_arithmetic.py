"""The problem generator: its arithmetic, its split, its seeds."""

import itertools
import re

import pytest

from lgrpo.arithmetic import LEVELS, Equation, draw, in_test, words
from lgrpo.problems import Problem

COUNT = 1500
EQUATION = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>")


def take(count: int, *arguments) -> list[Problem]:
    return list(itertools.islice(draw(*arguments), count))


def chain(problem: Problem) -> list[Equation]:
    return [(int(left), op, int(right)) for left, op, right, _ in EQUATION.findall(problem.cot)]


@pytest.mark.parametrize("name", LEVELS)
def test_every_equation_is_right_and_the_last_result_is_the_answer(name):
    level = LEVELS[name]
    for problem in take(COUNT, "train", 1, level):
        assert EQUATION.sub("=", problem.cot) == " ".join("=" * len(chain(problem))), problem
        results = []
        for left, op, right, result in EQUATION.findall(problem.cot):
            assert eval(f"{left}{op}{right}") == int(result), problem
            assert 1 <= int(result) <= level.largest
            results.append(result)
        assert results[-1] == problem.answer
        assert level.steps[0] <= len(results) <= level.steps[1]


@pytest.mark.parametrize("name", LEVELS)
def test_every_step_needs_the_one_before_and_numbers_of_the_text(name):
    for problem in take(COUNT, "train", 2, LEVELS[name]):
        told = [int(number) for number in re.findall(r"\d+", problem.problem)]
        assert all(2 <= number <= LEVELS[name].largest for number in told), problem
        equations = EQUATION.findall(problem.cot)
        used = [int(equations[0][0]), int(equations[0][2])]
        for before, (left, _, right, _) in itertools.pairwise(equations):
            assert before[3] in (left, right), problem
            used.append(int(right if left == before[3] else left))
        # `3*4=12, 12+12=24` leaves open which of the two was told, but not how many numbers there are.
        assert sorted(told) == sorted(used), problem


def test_splits_share_no_chain_whatever_the_wording():
    train = {tuple(chain(problem)) for problem in take(4000, "train", 0)}
    test = {tuple(chain(problem)) for problem in take(1000, "test", 0)}
    assert not train & test
    assert all(in_test(list(plan)) for plan in test)
    assert not any(in_test(list(plan)) for plan in train)


def test_a_swapped_sum_does_not_slip_from_test_into_train():
    for a, b, c in itertools.product(range(2, 9), range(10, 20), range(2, 9)):
        assert in_test([(a, "*", b), (a * b, "-", c)]) == in_test([(b, "*", a), (a * b, "-", c)])
        assert in_test([(a, "+", b), (a + b, "*", c)]) == in_test([(b, "+", a), (a + b, "*", c)])


def test_a_tenth_of_all_plans_is_test():
    plans = [[(a, "+", b), (a + b, "-", c)] for a in range(2, 42) for b in range(50, 70) for c in range(2, 12)]
    assert sum(map(in_test, plans)) / len(plans) == pytest.approx(0.1, abs=0.01)


def test_the_split_never_moves():
    """The shipped model was trained on this split: another hash would put trained problems into the test split."""
    held_out = [c for c in range(2, 60) if in_test([(6, "*", 10), (60, "-", c)])]
    assert held_out == [17, 28, 38, 40, 42, 48]


def test_same_seed_same_problems_and_another_seed_others():
    assert take(50, "train", 3) == take(50, "train", 3)
    assert not set(take(50, "train", 3)) & set(take(50, "train", 4))


def test_seeds_are_the_same_in_every_version():
    assert take(1, "test", 0) == [
        Problem(
            problem="Zoe has 46 marbles. Yuki has 4 more, sells 9 and gives away 4. How many marbles does Yuki have?",
            answer="37",
            cot="<<46+4=50>> <<50-9=41>> <<41-4=37>>",
        )
    ]


def test_the_readme_problem_is_one_the_generator_can_tell():
    text = "Tom has 3 boxes with 12 pens each and gives away 7. How many pens are left?"
    assert set(re.findall("[A-Za-z]+", text)) <= set(words())
    shape = re.compile(r"[A-Z]\w+ has \d+ \w+ with \d+ \w+ each and gives away \d+\. How many \w+ are left\?")
    assert any(shape.fullmatch(problem.problem) for problem in take(COUNT, "train", 0))


def test_every_word_of_a_story_is_in_the_word_list():
    known = set(words())
    assert len(known) <= 150
    for name in LEVELS:
        for problem in take(500, "test", 5, LEVELS[name]):
            assert set(re.findall("[A-Za-z]+", problem.problem)) <= known, problem


def test_nobody_is_given_two_counts():
    """A comparison introduces somebody new: "Ben has 5. ... Ben has 3 times as many" would contradict itself."""
    for problem in take(COUNT, "train", 6, LEVELS["hard"]):
        compared = re.findall(r"(?:^|\. )(\w+) has \d+ (?:more|fewer|times)", problem.problem)
        assert len(compared) == len(set(compared)), problem
        assert problem.problem.split()[0] not in compared, problem


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev'"):
        next(draw("dev"))
