"""How far a stage is, and how long it will take."""

from collections import deque
from collections.abc import Callable


class Pace:
    """How far a stage is, and how long it will take at the speed of its last 50 steps."""

    def __init__(self, title: str, total: int | None, done: int, clock: Callable[[], float]) -> None:
        """total: None where nobody knows."""
        self.title, self.total, self.done, self.first = title, total, done, done
        self._clock = clock
        self._began = clock()
        self._marks = deque([(self._began, done)], maxlen=50)

    def step(self, done: int) -> None:
        self.done = done
        self._marks.append((self._clock(), done))

    def took(self) -> float:
        """Seconds since the stage began in this process."""
        return self._clock() - self._began

    def left(self) -> float | None:
        """Seconds to the end, counting down between steps; None before the first step, or where there is no end."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        if after <= before or self.total is None:
            return None
        step = (end - start) / (after - before)
        return max(0.0, step * (self.total - after) - (self._clock() - end))

    def count(self) -> str:
        return f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
