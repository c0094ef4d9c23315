"""Labels beside points that do not lie on each other."""

from collections.abc import Sequence

WIDE, TALL = 6.4, 14.0  # pixels of a character, of a line
# Where a label may stand, from its point, in pixels: side and height; the nearest that is free is taken.
_PLACES = [(side, up) for up in (0, -12, 12, -24, 24, -36, 36, -48, 48, -62, 62, -76, 76) for side in (1, -1)]


def place_labels(
    points: Sequence[tuple[float, float]], texts: Sequence[str], size: tuple[float, float], away: float = 9
) -> list[tuple[int, int]]:
    """Choose for each point where its label stands, so that labels hide neither labels nor points where possible.

    Args:
        points: (x, y) of each point as fractions of the figure, y upward.
        texts: the labels, plain text.
        size: width and height of the plot in pixels.
        away: pixels between a point and its label.

    Returns:
        For each label (side, up): 1 to the right or −1 to the left of its point, and pixels above it.
    """
    spots = [(x * size[0], y * size[1]) for x, y in points]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    chosen: list = [None] * len(texts)
    for i in sorted(range(len(texts)), key=lambda i: -spots[i][1]):
        x, y = spots[i]
        best, least = (1, 0), float("inf")
        for rank, (side, up) in enumerate(_PLACES):
            start = x + away if side > 0 else x - away - WIDE * len(texts[i])
            box = (start, y + up - TALL / 2, start + WIDE * len(texts[i]), y + up + TALL / 2)
            outside = max(0, -box[0]) + max(0, box[2] - size[0]) + max(0, -box[1]) + max(0, box[3] - size[1])
            cost = sum(_overlap(box, other) for j, other in enumerate(taken) if j != i) + 30 * outside + 1.5 * rank
            if cost < least:
                best, least, mine = (side, up), cost, box
        chosen[i] = best
        taken.append(mine)
    return chosen


def _overlap(a: tuple, b: tuple) -> float:
    """Return the area that two boxes (left, bottom, right, top) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def text_position(side: int, up: int) -> str:
    """Return plotly's textposition that is nearest to a place beside a point."""
    return f"{'top' if up > 6 else 'bottom' if up < -6 else 'middle'} {'right' if side > 0 else 'left'}"
