"""Plots of the report page, as inline SVG with the page's colours.

Turns numbers into markup for page.py. A plotting library would take seconds to import, and its colours would not follow the
reader's light or dark scheme.
"""

from collections.abc import Mapping, Sequence
from math import floor

from markupsafe import Markup, escape

from pipelines.dataset.counted import ticks
from schemas.reports import ReliabilityBin

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 36
MOST_DOTS = 30

Points = Sequence[tuple[float, float]]


class _Axes:
    """Axes: data to pixels, with ticks."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = x, y

    def across(self, value: float) -> float:
        return LEFT + (value - self.x[0]) / ((self.x[1] - self.x[0]) or 1) * (WIDTH - LEFT - RIGHT)

    def up(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y[0]) / ((self.y[1] - self.y[0]) or 1) * (HEIGHT - TOP - BOTTOM)

    def frame(self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str, y_name: str) -> list[str]:
        parts = []
        for value in y_ticks:
            at = self.up(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in x_ticks:
            parts.append(
                f'<text x="{self.across(value):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>'
            )
        across, up = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
        parts.append(f'<text class="name" x="{across}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>')
        turned = f'transform="translate(11 {up}) rotate(-90)"'
        parts.append(f'<text class="name" {turned} text-anchor="middle">{escape(y_name)}</text>')
        return parts


def line_chart(series: Mapping[str, Points], x_name: str, y_name: str) -> Markup:
    """Return a line chart, one line a series in colours a, b, c; dots are drawn on lines of at most MOST_DOTS points."""
    points = [point for line in series.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    y_ticks = ticks(min(ys), max(ys))
    axes = _Axes((min(xs), max(xs)), (y_ticks[0], y_ticks[-1]))
    x_ticks = [x for x in ticks(min(xs), max(xs)) if min(xs) <= x <= max(xs) and x == int(x)]
    drawn = axes.frame(x_ticks, y_ticks, x_name, y_name)
    for colour, (name, line) in zip("abc", series.items(), strict=False):
        path = " ".join(f"{axes.across(x):.1f},{axes.up(y):.1f}" for x, y in line)
        drawn.append(f'<polyline class="line {colour}" points="{path}"/>')
        drawn += [
            f'<circle class="dot {colour}" cx="{axes.across(x):.1f}" cy="{axes.up(y):.1f}" r="3">'
            f"<title>{escape(name)}: {y:.4g} at {x:g}</title></circle>"
            for x, y in (line if len(line) <= MOST_DOTS else ())
        ]
    return _svg(drawn, f"{', '.join(series)} by {x_name}")


def reliability(series: Mapping[str, Sequence[ReliabilityBin]], names: tuple[str, str]) -> Markup:
    """Return a reliability diagram: confidence against accuracy, one dot a bin, its size by rows; `names` label the axes."""
    low = min((min(b.confidence, b.accuracy) for bins in series.values() for b in bins), default=0.0)
    low = floor(low * 5) / 5
    axes, marks = _Axes((low, 1.0), (low, 1.0)), [mark for mark in ticks(low, 1.0) if low <= mark <= 1]
    drawn = axes.frame(marks, marks, *names)
    ends = axes.across(low), axes.up(low), axes.across(1.0), axes.up(1.0)
    drawn.append('<line class="ideal" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'.format(*ends))
    most = max((b.n for bins in series.values() for b in bins), default=1)
    for colour, (name, bins) in zip("ca" if len(series) > 1 else "a", series.items(), strict=False):
        path = " ".join(f"{axes.across(b.confidence):.1f},{axes.up(b.accuracy):.1f}" for b in bins)
        drawn.append(f'<polyline class="line {colour}" points="{path}"/>')
        drawn += [
            f'<circle class="dot {colour}" cx="{axes.across(b.confidence):.1f}" cy="{axes.up(b.accuracy):.1f}" '
            f'r="{2 + 2.5 * (b.n / most) ** 0.5:.1f}"><title>{escape(name)}: predicted {b.confidence:.3f}, '
            f"observed {b.accuracy:.3f}, {b.n} rows</title></circle>"
            for b in bins
        ]
    return _svg(drawn, "reliability diagram", "dots")


def interval_bar(value: float, low: float, high: float, span: float, margin: float, *, bad: bool) -> Markup:
    """Return one line of a forest plot from -span to +span: a dot with its interval, with marks at 0 and -margin."""

    def at(change: float) -> str:
        return f"{100 + 96 * max(-1.0, min(1.0, change / span)):.1f}"

    colour = "bad" if bad else "a"
    return _markup(
        f'<svg class="forest" viewBox="0 0 200 16" role="img" aria-label="{value:+.3f}, from {low:+.3f} to {high:+.3f}">'
        f'<line class="zero" x1="100" x2="100" y1="0" y2="16"/>'
        f'<line class="ideal" x1="{at(-margin)}" x2="{at(-margin)}" y1="0" y2="16"/>'
        f'<line class="line {colour}" x1="{at(low)}" x2="{at(high)}" y1="8" y2="8"/>'
        f'<circle class="dot {colour}" cx="{at(value)}" cy="8" r="4"/></svg>'
    )


def _svg(drawn: Sequence[str], title: str, kind: str = "lines") -> Markup:
    return _markup(
        f'<svg class="plot {kind}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
    )


def _markup(text: str) -> Markup:
    return Markup(text)  # noqa: S704 - numbers and escaped names only
