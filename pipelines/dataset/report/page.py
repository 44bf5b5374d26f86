"""Render a dataset's manifest and profile as one self-contained HTML page, in light and dark.

matplotlib draws the plots as SVG, jinja2 fills the page. write.py puts it beside dataset.json.
"""

import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jinja2
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from schemas.manifests import DatasetManifest, DatasetProfile
from schemas.printable import one_line

log = logging.getLogger("ratchet.profile_page")

MOST_BARS = 30
# People write labels and metadata: "$" in them is no mathtext.
PLAIN = {"svg.fonttype": "none", "svg.hashsalt": "ratchet", "font.family": "sans-serif", "text.parse_math": False}
# Placeholders in the SVG for the colours of the page, which differ in light and dark.
INK, ACCENT = "#010203", "#040506"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Dataset {{ m.fingerprint[:12] }}</title>
<style>
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5c636b; --paper: #fff; --line: #d9dde1; --accent: #2f6f9f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #9aa3ab; --paper: #15181b; --line: #343a40; --accent: #6fb1e0; } }
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } p { margin: .3rem 0; }
.soft { color: var(--soft); } code { font-size: .85em; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .9rem; } svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; }
</style></head><body>
<h1>Dataset of {{ name }}</h1>
<p class="soft">fingerprint <code>{{ m.fingerprint }}</code></p>
<p>{{ n(m.rows_in) }} rows in = {{ n(m.rows_train) }} train + {{ n(m.rows_validation) }} validation
{%- for count, what in others if count %} + {{ n(count) }} {{ what }}{% endfor %} + {{ n(dropped) }} dropped.
Judged on {{ n(m.reference_rows) }} rows,
calibrated on {% if m.reference_calibration_rows %}{{ n(m.reference_calibration_rows) }} others
{%- else %}the same rows by cross-fitting{% endif %}.</p>
{% if p.missing_labels %}<p><strong>Labels without a training row:</strong> {{ p.missing_labels | join(", ") }}</p>{% endif %}
{% if m.quarantined_people %}<p><strong>Quarantined people:</strong> {{ m.quarantined_people | length }}</p>{% endif %}
<div class="plots">{% for title, svg in plots %}<figure>{{ svg }}<figcaption>{{ title }}</figcaption></figure>{% endfor %}</div>

<h2>What was dropped</h2>
<div class="scroll"><table><tr><th>reason<th class="n">rows<th>example</tr>
{% for reason, count in m.dropped.items() %}<tr><td>{{ reason }}<td class="n">{{ n(count) }}
<td class="soft">{{ m.dropped_examples.get(reason, "") }}</tr>{% else %}<tr><td>nothing<td><td></tr>{% endfor %}
{% for reason, count in m.reference_dropped.items() %}<tr><td>reference: {{ reason }}<td class="n">{{ n(count) }}<td></tr>
{% endfor %}</table></div>

{% if p.rows_by_label %}<h2>{{ what | capitalize }}s</h2>
<div class="scroll"><table><tr><th>{{ what }}{% for side in p.rows_by_side %}<th class="n">{{ side }}{% endfor %}</tr>
{% for label, sides in p.rows_by_label.items() %}<tr><td>{{ label }}
{%- for side in p.rows_by_side %}<td class="n">{{ n(sides.get(side, 0)) }}{% endfor %}</tr>{% endfor %}</table></div>
{% else %}<h2>Sides</h2><p>{% for side, count in p.rows_by_side.items() %}{{ n(count) }} {{ side }}{{ ", " if not loop.last }}
{%- endfor %}.</p>{% endif %}

<h2>People, slices, lengths</h2>
<p>{{ n(p.people) }} people; the busiest gave {{ "%.1f" | format(100 * p.largest_person_share) }} % of the training rows.
{% if p.smallest_slice %}The smallest slice is {{ p.smallest_slice }}.{% endif %}
Characters: {% for q, v in p.characters.items() %}{{ q }} {{ n(v) }}{{ ", " if not loop.last }}{% endfor %}.
{{ "%.1f" | format(100 * p.cut_share) }} % of the texts are truncated to the model's length.</p>

<h2>Drift of the training rows</h2>
<div class="scroll"><table><tr><th>compared with<th class="n">rows<th class="n">{{ what }} PSI<th class="n">χ² p
<th class="n">embedding distance<th class="n">two-sample accuracy<th class="n">p</tr>
{% for d in p.drift %}<tr><td>{{ d.against }}<td class="n">{{ n(d.rows) }}
{%- for v in (d.psi, d.chi2_p, d.embedding_distance, d.two_sample_accuracy, d.two_sample_p) %}<td class="n">
{{- "-" if v is none else "%.3g" | format(v) }}{% endfor %}</tr>{% else %}<tr><td>nothing to compare yet</tr>{% endfor %}
</table></div>
<p class="soft">PSI above 0.25 is a shift of {{ what }}s. Two-sample accuracy is that of a classifier that predicts which of the
two sets a text is from: 0.5 means no difference.</p>
</body></html>
"""


def render(name: str, manifest: DatasetManifest, profile: DatasetProfile) -> str:
    """Return the page of a dataset of the model `name`."""
    with rc_context(PLAIN):
        plots = _plots(manifest, profile)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    others = [
        (manifest.rows_rejections, "rejections"),
        (manifest.rows_held_out, "held out"),
    ]
    return environment.from_string(_PAGE).render(
        name=name,
        m=manifest,
        p=profile,
        plots=plots,
        what=_what(manifest),
        others=others,
        dropped=sum(manifest.dropped.values()),
        n=lambda value: f"{value:,.0f}",
    )


def _plots(manifest: DatasetManifest, profile: DatasetProfile) -> list[tuple[str, Markup]]:
    labels = {label: sides.get("train", 0) for label, sides in profile.rows_by_label.items()}
    bars = {
        f"training rows by {_what(manifest)}": labels,
        "training rows by source": profile.rows_by_source,
        "rows dropped, by reason": manifest.dropped,
        "training rows by slice": profile.slices,
    }
    charts = [(title + _of(counts), _drawn(title, partial(_bars, counts))) for title, counts in bars.items() if counts]
    title = "tokens of a text"
    return [*charts, (title, _drawn(title, partial(_histogram, profile.token_edges, profile.token_counts)))]


def _drawn(title: str, draw: Callable[[], Markup]) -> Markup:
    """Return a plot, or a sentence if drawing fails, so that no plot stops a round."""
    try:
        with warnings.catch_warnings():
            # glyphs missing from the font that measures: the browser has them
            warnings.simplefilter("ignore", UserWarning)
            return draw()
    except Exception:
        log.exception("the plot %r could not be drawn", title)
        return Markup("<p>This plot could not be drawn: the round's log says why.</p>")


def _what(manifest: DatasetManifest) -> str:
    return "label" if manifest.labels else "target"


def _of(counts: Mapping[str, int]) -> str:
    return f" (the largest {MOST_BARS} of {len(counts)})" if len(counts) > MOST_BARS else ""


def _bars(counts: Mapping[str, int]) -> Markup:
    shown = sorted(counts.items(), key=lambda item: -item[1])[:MOST_BARS][::-1]
    figure = Figure(figsize=(5.2, 0.9 + 0.27 * len(shown)), layout="constrained")
    axes = figure.subplots()
    names = [one_line(name, 32) for name, _ in shown]
    drawn = axes.barh(range(len(shown)), [count for _, count in shown], color=ACCENT)
    axes.set_yticks(range(len(shown)), names)
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3, color=INK, fontsize=8)
    axes.margins(x=0.12)
    return _svg(figure)


def _histogram(edges: Sequence[int], counts: Sequence[int]) -> Markup:
    figure = Figure(figsize=(5.2, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True, color=ACCENT)
    axes.set_ylabel("texts")
    return _svg(figure)


def _svg(figure: Figure) -> Markup:
    """Return inline SVG in the colours of the page."""
    for axes in figure.axes:
        axes.tick_params(colors=INK, labelsize=8)
        axes.yaxis.label.set_color(INK)
        axes.set_facecolor("none")
        for name, spine in axes.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color(INK)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(INK, "var(--ink)").replace(ACCENT, "var(--accent)")
    return Markup(drawn)  # noqa: S704 - matplotlib escapes what it draws
