"""The benchmarks `eval` knows by name: which split of a data set they are, and how often the paper asks each problem.

Names lead to data sets of the hub in hub.py's table. Where a data set comes as one part, that part is called `train`
on the hub, whatever it is for.
"""

from typing import NamedTuple

from lgrpo.data.hub import ALIASES


class Benchmark(NamedTuple):
    """One line of the table."""

    split: str
    runs: int  # noise-free runs of each problem (Latent-GRPO, arXiv 2604.27998)


BENCHMARKS = {
    "arithmetic": Benchmark("test", 5),
    "gsm8k": Benchmark("test", 5),  # 1,319 problems
    "gsm8k-aug": Benchmark("test", 5),  # the same problems
    "gsm-hard": Benchmark("train", 5),  # 1,319, with larger numbers
    "svamp": Benchmark("test", 5),  # 300
    "multiarith": Benchmark("test", 5),  # 180
    "math500": Benchmark("test", 4),
    "aime24": Benchmark("train", 64),  # 30
    "aime25": Benchmark("test", 64),  # 30
    "gpqa": Benchmark("train", 8),  # the 198 of its diamond part, multiple choice
}
_BY_SOURCE = {source: name for name, source in ALIASES.items() if name in BENCHMARKS}


def known(source: str) -> Benchmark | None:
    """The benchmark that a source of data is, by its own name, by the hub's, or as `arithmetic:LEVEL`; else None."""
    if source.startswith("arithmetic:"):
        source = "arithmetic"
    return BENCHMARKS.get(source) or BENCHMARKS.get(_BY_SOURCE.get(ALIASES.get(source, source), ""))
