"""Which numbers a person may give: one home for the range of each, with its reason. Knows neither click nor torch."""

from typing import NamedTuple


class Range(NamedTuple):
    """Numbers from `least` to `most`, and 0 where it means that something is off."""

    least: float
    most: float
    zero: bool = False

    def holds(self, value: float) -> bool:
        """Whether it is one of them; nan is none."""
        return self.least <= value <= self.most or (self.zero and value == 0)

    def __str__(self) -> str:
        ends = (str(end) if isinstance(end, int) else f"{end:g}" for end in (self.least, self.most))
        return "0, or " * self.zero + "from {} to {}".format(*ends)


# Logits, scores and losses are float32, from 1e-38 to 3e38: products and quotients of several such factors stay inside.
FACTOR = Range(1e-6, 1e6)
SHARE = Range(1e-6, 1.0)  # of 1
RATE = Range(1e-12, 1.0)  # of learning: less moves no float32 weight, more no model survives
COUNT = Range(1, 2**31 - 1)  # whole numbers that nothing else bounds: what every library counts with
ANSWERS = Range(1, 1024)  # to one problem: 16 times the most that are published (AIME), and each is kept
PROBLEMS = Range(1, 1 << 16)  # in a batch, or rollouts of one: 1,024 times the 64 that are published; see ROLLOUTS
ROLLOUTS = 1 << 17  # in a batch, 256 times as many as published: they are in memory together, 10 kB each

_OFF = {"limit", "kl", "noise_scale", "weight_decay", "smoothing", "lr_warm_up"}  # 0 is none, or all of it
_OF = {
    "top_p": SHARE, "noise_top_p": SHARE, "smoothing": SHARE, "lr_warm_up": SHARE,
    "lr": RATE, "warm_up_lr": RATE, "encoder_lr": RATE, "decoder_lr": RATE, "joint_lr": RATE, "walk_lr": RATE,
    "batch": PROBLEMS, "group": PROBLEMS, "update_batch": PROBLEMS, "slots": PROBLEMS,
}  # fmt: skip


def range_of(name: str, whole: bool) -> Range:
    """Of the setting of that name, in a plan or a card; whole: it is a whole number."""
    zero = name in _OFF or name.endswith("_steps")
    return _OF.get(name, COUNT if whole else FACTOR)._replace(zero=zero)


TEMPERATURE = FACTOR._replace(zero=True)  # of a question: 0 is the most probable token
NOISE = range_of("noise_scale", whole=False)
