"""A curve in a few lines of a terminal, drawn with braille dots: two across and four down a letter."""

from collections.abc import Sequence

Point = tuple[float, float]

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # by column, from the top
_BLANK = 0x2800


def curve(points: Sequence[Point], width: int, height: int, last_x: float) -> tuple[list[str], float, float]:
    """`height` lines of `width` letters, and the values at the lower and the upper edge.

    x runs from 0 to `last_x`. Points that share a column of dots become their mean; neighbours are joined. Values that
    hardly differ are drawn as a flat line in the middle rather than blown up.
    """
    columns, rows = 2 * width, 4 * height
    buckets: dict[int, list[float]] = {}
    for x, y in points:
        place = 0 if last_x <= 0 else round(min(max(x / last_x, 0.0), 1.0) * (columns - 1))
        buckets.setdefault(place, []).append(y)
    means = {place: sum(values) / len(values) for place, values in sorted(buckets.items())}
    low, high = _range(list(means.values()))
    dots = [[0] * width for _ in range(height)]

    def dot(column: int, value: float) -> int:
        row = rows - 1 - round((value - low) / (high - low) * (rows - 1))
        dots[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
        return row

    def join(column: int, first: int, last: int) -> None:
        for row in range(min(first, last), max(first, last) + 1):
            dots[row // 4][column // 2] |= _DOTS[column % 2][row % 4]

    before: tuple[int, float, int] | None = None
    for place, value in means.items():
        row = dot(place, value)
        if before is not None:
            start, from_value, from_row = before
            for between in range(start + 1, place):
                share = (between - start) / (place - start)
                next_row = dot(between, from_value + share * (value - from_value))
                join(between, from_row, next_row)
                from_row = next_row
            join(place, from_row, row)
        before = place, value, row
    return ["".join(chr(_BLANK + bits) for bits in line) for line in dots], low, high


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Edges with a little air; at least 0.02 apart, or a hundredth of the values."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    least = max(0.02, 0.01 * max(abs(low), abs(high)))
    air = max((least - (high - low)) / 2, 0.05 * (high - low))
    return low - air if low < 0 else max(low - air, 0.0), high + air
