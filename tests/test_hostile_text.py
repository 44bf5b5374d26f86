"""Text from outside is never markup, maths, a path or a format string; no plot and no page stops a round."""

from pathlib import Path

import pytest

from pipelines.dataset.report import page as profile_page
from pipelines.pages import write_page
from schemas.manifests import DatasetManifest, DatasetProfile

HOSTILE = [
    "$$",
    "$\\frac{",
    r"\$",
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "{0.__class__} %s %n",
    "[bold]x[/bold]",
    "../../etc/passwd",
    "=1+1",
    "a\nb\x00\x1b[31m",
    "\u202egnp.exe",
    "x" * 10_000,
    "कि مرحبا 東京 👩‍👩‍👧",
    "half \ud800",
    " ",
]


def described(names: list[str]) -> tuple[DatasetManifest, DatasetProfile]:
    """The manifest and the profile of a dataset whose every name is hostile."""
    counts = {name: n + 1 for n, name in enumerate(names)}
    manifest = DatasetManifest.model_construct(
        **{
            **{
                name: field.get_default(call_default_factory=True)
                for name, field in DatasetManifest.model_fields.items()
            },
            **{name: 0 for name in DatasetManifest.model_fields if name.startswith(("rows", "reference"))},
            "fingerprint": "f" * 64,
            "labels": names,
            "dropped": counts,
            "dropped_examples": {name: name for name in names},
            "reference_dropped": counts,
            "quarantined_people": names,
        }
    )
    profile = DatasetProfile.model_construct(
        rows_by_side={"train": 3},
        rows_by_label={name: {"train": n} for name, n in counts.items()},
        rows_by_source=counts,
        missing_labels=names,
        people=1,
        largest_person_share=0.5,
        slices={f"{name}={name}": n for name, n in counts.items()},
        smallest_slice=names[0],
        characters={"50 %": 3.0},
        token_edges=[0, 1, 2],
        token_counts=[1, 2],
        cut_share=0.0,
        drift=[],
    )
    return manifest, profile


def test_the_dataset_page_shows_any_name_as_it_is(tmp_path: Path) -> None:
    write_page(tmp_path / "p.html", lambda: profile_page.render("m", *described(HOSTILE)))
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "could not be" not in page
    assert "<script" not in page
    assert "{{ 7 * 7 }}" in page
    assert page.count("$$") >= 3, "in the plots too, and not as mathtext"


@pytest.mark.parametrize("name", HOSTILE)
def test_each_name_alone_is_drawn(name: str) -> None:
    assert "could not be drawn" not in profile_page.render("m", *described([name]))


def test_a_plot_that_fails_is_a_line_and_a_log_record(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise ValueError("no such font")

    monkeypatch.setattr("matplotlib.axes.Axes.barh", broken)
    page = profile_page.render("m", *described(["a"]))
    assert page.count("This plot could not be drawn") == 4, "the histogram stays"
    assert "no such font" in caplog.text


def test_a_page_that_fails_is_a_line_and_a_log_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> str:
        raise KeyError("label")

    write_page(tmp_path / "report.html", broken)
    assert "This page could not be rendered" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "report.html could not be rendered" in caplog.text
