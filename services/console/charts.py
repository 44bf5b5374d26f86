"""Charts of the console, as inline SVG in the page's colours.

Turns numbers into markup, without inline style, which the content security policy forbids: static/console.css colours the
classes. Every chart has a label that a screen reader speaks, and a title on every mark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipelines.dataset.counted import ticks

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 10, 30
INSET = 10  # between the axis and the first mark
MOST_DOTS = 40


@dataclass(frozen=True)
class Mark:
    """A point of a chart: x, value, its interval if it has one, and what its tooltip says."""

    x: float
    value: float
    low: float | None = None
    high: float | None = None
    title: str = ""


class _Frame:
    """Data to pixels."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.x = (min(xs), max(xs))
        self.y_ticks = ticks(min(ys), max(ys))
        self.y = (self.y_ticks[0], self.y_ticks[-1])

    def across(self, value: float) -> float:
        if self.x[1] == self.x[0]:
            return (LEFT + WIDTH - RIGHT) / 2
        return LEFT + INSET + (value - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT - 2 * INSET)

    def up(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y[0]) / ((self.y[1] - self.y[0]) or 1) * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_name: str) -> list[str]:
        parts = []
        for value in self.y_ticks:
            at = self.up(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
        low, high = self.x
        between = [x for x in ticks(low, high) if low <= x <= high and x == int(x)] if high > low else [low]
        parts += [
            f'<text x="{self.across(x):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{x:g}</text>' for x in between
        ]
        parts.append(f'<text class="axis" x="0" y="{HEIGHT - 10}">{escape(x_name)}</text>')
        return parts


def steps(marks: Sequence[Mark], x_name: str, label: str, limit: Sequence[Mark] = ()) -> Markup:
    """Return a step line with an interval around each mark: a value that holds until the next promotion.

    `limit` is drawn as a dashed line, such as the value that a calibrated model stays below.
    """
    ends = [y for m in marks for y in (m.low, m.high, m.value) if y is not None] + [m.value for m in limit]
    frame = _Frame([m.x for m in marks], ends)
    drawn = frame.axes(x_name)
    banded = [m for m in marks if m.low is not None and m.high is not None]
    if len(banded) > 1:
        upper = _stairs(frame, [(m.x, m.high or 0.0) for m in banded])
        lower = _stairs(frame, [(m.x, m.low or 0.0) for m in banded])[::-1]
        drawn.append(f'<polygon class="band" points="{" ".join(upper + lower)}"/>')
    if len(limit) > 1:
        drawn.append(f'<polyline class="limit" points="{" ".join(_stairs(frame, [(m.x, m.value) for m in limit]))}"/>')
    if len(marks) > 1:
        drawn.append(f'<polyline class="line a" points="{" ".join(_stairs(frame, [(m.x, m.value) for m in marks]))}"/>')
    for n, mark in enumerate(marks):
        if len(marks) > MOST_DOTS and n < len(marks) - 1:
            continue
        x, y = frame.across(mark.x), frame.up(mark.value)
        if mark.low is not None and mark.high is not None and n == len(marks) - 1:
            drawn.append(
                f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.up(mark.low):.1f}" '
                f'y2="{frame.up(mark.high):.1f}"/>'
            )
        last = " last" if n == len(marks) - 1 else ""
        drawn.append(
            f'<circle class="dot a{last}" cx="{x:.1f}" cy="{y:.1f}" r="{5 if last else 3.5}">'
            f"<title>{escape(mark.title)}</title></circle>"
        )
    return _svg(drawn, label)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x_name: str, label: str) -> Markup:
    """Return a line chart of up to three series, in colours a, b, c."""
    points = [point for line in series.values() for point in line]
    frame = _Frame([x for x, _ in points], [y for _, y in points])
    drawn = frame.axes(x_name)
    for colour, (name, line) in zip("abc", series.items(), strict=False):
        path = " ".join(f"{frame.across(x):.1f},{frame.up(y):.1f}" for x, y in line)
        drawn.append(f'<polyline class="line {colour}" points="{path}"><title>{escape(name)}</title></polyline>')
        x, y = line[-1]
        drawn.append(
            f'<circle class="dot {colour} last" cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}" r="4">'
            f"<title>{escape(name)}: {y:.4g}</title></circle>"
        )
    return _svg(drawn, label)


def bars(counts: Sequence[int], label: str, titles: Sequence[str]) -> Markup:
    """Return a strip of bars, one a time step, the newest at the right."""
    width, height, gap = 600, 72, 2
    most, each = max(1, *counts), width / max(1, len(counts))
    drawn = []
    for n, (count, title) in enumerate(zip(counts, titles, strict=True)):
        tall = max(1.5, count / most * (height - 4)) if count else 1.5
        drawn.append(
            f'<rect class="bar{"" if count else " none"}" x="{n * each:.1f}" y="{height - tall:.1f}" '
            f'width="{max(1.0, each - gap):.1f}" height="{tall:.1f}" rx="1.5"><title>{escape(title)}</title></rect>'
        )
    return _markup(
        f'<svg class="strip" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{"".join(drawn)}</svg>'
    )


def meter(share: float, label: str) -> Markup:
    """Return a progress bar from 0 to 1."""
    filled = 100 * min(1.0, max(0.0, share))
    return _markup(
        f'<svg class="meter" viewBox="0 0 100 4" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<rect class="track" width="100" height="4" rx="0"/><rect class="fill" width="{filled:.1f}" height="4" rx="0"/></svg>'
    )


def interval(value: float, low: float, high: float, span: float, label: str) -> Markup:
    """Return a difference with its interval, from -span to +span, with a mark at 0."""

    def at(change: float) -> float:
        return 100 + 96 * max(-1.0, min(1.0, change / (span or 1)))

    sign = "good" if low > 0 else "bad" if high < 0 else "even"
    return _markup(
        f'<svg class="forest" viewBox="0 0 200 16" role="img" aria-label="{escape(label)}">'
        f'<line class="zero" x1="100" x2="100" y1="0" y2="16"/>'
        f'<line class="line {sign}" x1="{at(low):.1f}" x2="{at(high):.1f}" y1="8" y2="8"/>'
        f'<circle class="dot {sign}" cx="{at(value):.1f}" cy="8" r="4"/></svg>'
    )


def _stairs(frame: _Frame, points: Sequence[tuple[float, float]]) -> list[str]:
    """Return the corners of a step line: each value holds until the next x."""
    corners: list[str] = []
    for n, (x, y) in enumerate(points):
        corners.append(f"{frame.across(x):.1f},{frame.up(y):.1f}")
        if n + 1 < len(points):
            corners.append(f"{frame.across(points[n + 1][0]):.1f},{frame.up(y):.1f}")
    return corners


def _svg(drawn: Sequence[str], label: str) -> Markup:
    return _markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>'
    )


def _markup(text: str) -> Markup:
    return Markup(text)  # noqa: S704 - numbers and escaped names only
