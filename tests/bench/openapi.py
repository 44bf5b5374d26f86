"""`make bench-openapi`: the OpenAPI document against a live server, and malformed requests.

Turns one worker over a tiny model into counts: cases that schemathesis makes from the document, the violations it finds, and what
became of damaged requests. CASES, EXAMPLES, RAW and SEED set how many. Writes bench-openapi.json.
"""

import os
import tempfile
from pathlib import Path

from tests.bench.report import Figure, write
from tests.support.openapi_cases import run_cases
from tests.support.raw_requests import outcomes
from tests.support.served import Served, make_project, served

EXAMPLES = int(os.environ.get("EXAMPLES", "550"))  # of an operation and phase: some 5,400 cases
RAW = int(os.environ.get("RAW", "2000"))
SEED = int(os.environ.get("SEED", "1"))
LONGEST_S = 3600.0


def main() -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(make_project(folder / "project", workers=1)) as server:
            figures = [*_document(server, folder), *_raw(server)]
            figures.append(_figure("stack traces in the log", _traces(server), "<=", 0, 1))
    write("openapi", figures)


def _document(server: Served, folder: Path) -> list[Figure]:
    cases = run_cases(server, examples=EXAMPLES, seed=SEED, folder=folder, timeout_s=LONGEST_S)
    print(cases.report[cases.report.find("= FAILURES") :] if cases.violations else cases.report[-600:], flush=True)
    return [
        _figure("cases from the document", cases.sent, ">=", 5000, cases.sent),
        _figure("violations of the document", cases.violations, "<=", 0, cases.sent),
    ]


def _raw(server: Served) -> list[Figure]:
    found = outcomes(server.port, server.header, RAW, SEED)
    print(f"malformed requests: {dict(sorted(found.items()))}", flush=True)
    broken = sum(count for status, count in found.items() if status.startswith("5"))
    return [
        _figure("malformed requests that hang", found["hang"], "<=", 0, RAW),
        _figure("malformed requests answered 5xx", broken, "<=", 0, RAW),
        _figure("the worker still runs", float(server.process.is_running()), ">=", 1, 1),
    ]


def _traces(server: Served) -> int:
    return server.log.read_text(encoding="utf-8").count("Traceback")


def _figure(name: str, value: float, op: str, target: float, n: int) -> Figure:
    return Figure(figure=name, value=value, op=">=" if op == ">=" else "<=", target=target, n=n)


if __name__ == "__main__":
    main()
