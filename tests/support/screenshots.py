"""Screenshots of every page of the console, for docs/: a tiny real project whose rounds ran, served by a running `ratchet up`.

Turns a folder, which may hold the project of an earlier call, into docs/images/console-*.png. Run it by `make screenshots`. The
model is tiny and its texts are toys; everything that the pages show of it was measured.
"""

import contextlib
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pipelines.feature_store.event_log import EventLog
from pipelines.feature_store.store import FeatureStore
from schemas.queue import NewItem
from schemas.settings import Settings
from services.projects import open_project
from serving.registry.registry import PersonExists, Registry
from tests.support import browsers, consoles, first_rounds
from tests.support.fakes import free_port, tiny_base_model, toy_rows
from tests.support.running_up import RunningUp, Traffic

if TYPE_CHECKING:
    from playwright.sync_api import Page

STEPS = (24, 60, 130, 240)  # feedback stored before each further round
OUT = Path(__file__).parents[2] / "docs/images"
COLOURS = 128
SHOTS = (
    # name, path, size, scheme, pixels of height
    ("overview", "/", "desktop", "light", 1000),
    ("overview-dark", "/", "desktop", "dark", 1000),
    ("overview-phone", "/", "phone", "light", 1300),
    ("rounds", "/rounds", "desktop", "light", 620),
    ("review", "/rounds/{waiting}", "desktop", "light", 1250),
    ("review-phone", "/rounds/{waiting}", "phone", "dark", 1300),
    ("queue", "/queue", "desktop", "light", 760),
    ("models", "/models", "desktop", "light", 760),
    ("model", "/models/{champion}", "desktop", "light", 800),
    ("compare", "/models/compare?first={first}&second={champion}", "desktop", "light", 900),
    ("feedback", "/feedback", "desktop", "light", 760),
    ("people", "/feedback/quarantine", "desktop", "light", 760),
    ("person", "/feedback/people/{person}", "desktop", "light", 620),
    ("letters", "/feedback/orphans", "desktop", "light", 620),
    ("audit", "/audit", "desktop", "light", 760),
    ("try-phone", "/try", "phone", "light", 1000),
    ("sign-in", "/sign-in", "desktop", "light", 700),
    ("queue-phone", "/queue", "phone", "dark", 844),
)


def main() -> None:
    """Make the project unless the given folder has it, and take the pictures."""
    with contextlib.ExitStack() as stack:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / first_rounds.FOLDER).exists():
            make(folder)
        shoot(folder / first_rounds.FOLDER)


def make(folder: Path) -> None:
    """Run the rounds: each learns from more feedback than the one before, and the last one waits for a person."""
    first_rounds.make(folder, tiny_base_model(folder / "base"))
    project = folder / first_rounds.FOLDER
    settings = consoles.with_console(project)
    with contextlib.closing(Registry(settings.registry_url, settings.model.name)) as registry:
        registry.migrate()
        for done, upto in zip((0, *STEPS), STEPS, strict=False):
            consoles.add_events(settings, upto - done, start=done)
            approval = "manual" if upto == STEPS[-1] else "auto"
            gates = settings.gates.model_copy(update={"approval": approval})
            changed: Settings = settings.model_copy(update={"gates": gates})
            features, reason = FeatureStore(changed), f"{upto - done} labelled feedback"
            record = first_rounds.next_round(changed, registry, features, reason=reason)
            print(f"{upto} feedback: {record.state}. {record.detail}", flush=True)


def shoot(project: Path) -> None:
    """Serve the project, send it traffic, and take the pictures."""
    consoles.configure(
        project,
        serving={"port": free_port(), "workers": 2},
        console={"port": free_port()},
        triggers={"min_feedback": 200},
        gates={"approval": "manual"},
    )
    settings = consoles.with_console(project, port=open_project(project).console.port)
    up = RunningUp(settings)
    up.start()
    try:
        up.ready(900)
        with contextlib.closing(Registry(settings.registry_url, settings.model.name)) as registry:
            key = _person(registry)
            texts = [text for text, _ in toy_rows(8, seed=77)]
            items = [NewItem(kind="audit", task="classification", key=f"shot {n}", text=x) for n, x in enumerate(texts)]
            registry.queue_items.add(items)
            with Traffic(up, callers=1, pause_s=4).running():
                time.sleep(75)
            names = _names(registry) | {"person": _most_active(settings)}
        url = f"http://127.0.0.1:{settings.console.port}"
        with browsers.browser() as chromium:
            for name, path, size, scheme, height in SHOTS:
                with browsers.page(chromium, size, scheme) as page:
                    _take(page, url, key, name, path.format(**names), height)
    finally:
        up.stop()


def _person(registry: Registry) -> str:
    try:
        return registry.people.add("rita", ["review", "admin"])
    except PersonExists:
        return registry.people.rotate("rita", overlap_s=0)


def _names(registry: Registry) -> dict[str, str]:
    newest, champion = registry.history.rounds_page(limit=1)[0][1], registry.champion()
    assert champion
    return {
        "waiting": newest.round_id,
        "champion": champion.model_version,
        "first": registry.versions()[-1].model_version,
    }


def _most_active(settings: Settings) -> str:
    log = EventLog(settings.location(settings.feature_store.event_log))
    people = log.rows("feedback").to_table(columns=["user"])["user"].to_pylist()
    return str(Counter(people).most_common(1)[0][0])


def _take(page: "Page", url: str, key: str, name: str, path: str, height: int) -> None:
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height})
    page.goto(f"{url}/sign-in")
    if name != "sign-in":
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_url(lambda address: "sign-in" not in address)
        page.goto(url + path)
    if name == "try-phone":
        page.fill("#text", "butter, flour and a hot oven")
        page.click("text=Ask")
        page.wait_for_selector(".answer b")
    if name == "compare":
        page.wait_for_selector("text=Change from the first", timeout=600_000)
    page.wait_for_timeout(900)
    OUT.mkdir(parents=True, exist_ok=True)
    target = OUT / f"console-{name}.png"
    page.screenshot(path=target)
    with Image.open(target) as picture:
        picture.convert("RGB").quantize(COLOURS).save(target, optimize=True)
    print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
