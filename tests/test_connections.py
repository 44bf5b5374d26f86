"""Limits of connections on a real uvicorn with short times: each attack gets a refusal or is closed, honest callers do not."""

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serving.http.asgi import Message, Receive, Send
from serving.http.connections import Limits, OpenConnections
from serving.http.listening import open_file_limit
from tests.support.fakes import REPOSITORY, wait_until
from tests.support.raw_connections import answer, bounded, opened, read_one, seconds_until_closed

LIMITS = Limits(
    connections=20,
    body_bytes=100_000,
    head_s=1.0,
    body_s=1.0,
    rest_s=0.5,
    idle_s=3.0,
    stalled_s=0.5,
    linger_s=0.5,
    sweep_s=0.05,
)
BIG = 5_000_000
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
EARLY = b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"  # answered before its body
waiting: list[str] = []  # requests of /wait, which are answered once `released` is set
released = threading.Event()


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Answer /big at length, /early before the body, /slow and /wait late, and anything else with the length of its body."""
    size = 0
    if scope["path"] == "/slow":
        await asyncio.sleep(LIMITS.idle_s + 0.2)
    if scope["path"] == "/wait":
        waiting.append(scope["path"])
        while not released.is_set():
            await asyncio.sleep(0.01)
    while scope["path"] != "/early":
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        if not message.get("more_body"):
            break
    body = b"x" * BIG if scope["path"] == "/big" else str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, OpenConnections]]:
    with bounded(app, LIMITS) as serving:
        yield serving


@pytest.fixture
def port(server: tuple[int, OpenConnections]) -> int:
    return server[0]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c, WebSocket\r\n\r\n", 400),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (GET * 40, 400),
    ],
)
def test_what_is_malformed_or_too_large_is_refused_in_json(port: int, request_bytes: bytes, status: int) -> None:
    if request_bytes == GET * 40:  # more than may wait: closed, since the first may be half answered
        with opened(port) as one:
            one.sendall(request_bytes)
            seconds_until_closed(one)
        return
    found, body = answer(port, request_bytes)
    assert (found, body["detail"]) == (status, [])


def test_trailers_and_chunk_sizes_cannot_grow_without_end(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert answer(port, head, b"2\r\nhi\r\n0\r\nX-Trailer: 1\r\n\r\n") == (200, "2")
    assert answer(port, head, b"2;" + b"e" * 300_000)[0] == 400
    assert answer(port, head, b"2\r\nhi\r\n0\r\nX: ", b"t" * 300_000)[0] == 400


def test_slow_headers_and_slow_bodies_are_ended(port: int) -> None:
    with opened(port) as silent, opened(port) as slow, opened(port) as blank:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        blank.sendall(b"\r\n")
        assert read_one(slow)[0] == 408
        seconds_until_closed(silent)
        seconds_until_closed(blank)
    with opened(port) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhi")
        assert read_one(slow)[0] == 408


def test_an_idle_connection_lives_as_long_as_it_should_and_blank_lines_do_not_prolong_it(port: int) -> None:
    with opened(port) as one:
        one.sendall(GET)
        assert read_one(one) == (200, "0")
        time.sleep(LIMITS.head_s + 0.2)  # longer than the headers of a request may take
        one.sendall(GET)
        assert read_one(one) == (200, "0")
        one.sendall(b"\r\n")
        assert seconds_until_closed(one) > LIMITS.head_s


def test_an_answer_that_nobody_reads_is_dropped(server: tuple[int, OpenConnections]) -> None:
    port, connections = server
    with opened(port) as one:
        one.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        one.recv(10)
        wait_until(lambda: len(connections) == 0)


def test_a_slow_answer_is_waited_for(port: int) -> None:
    assert answer(port, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n") == (200, "0")


def test_a_body_that_nobody_wants_is_read_up_to_a_limit(port: int) -> None:
    head = b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n"
    with opened(port) as one:
        one.sendall(head)
        assert read_one(one)[0] == 200
        with pytest.raises(OSError, match=r"reset|pipe|aborted"):  # noqa: PT012 - one of many sends fails
            for _ in range(500):
                one.sendall(b"x" * 100_000)
                time.sleep(0.005)


def test_a_request_is_answered_once_even_if_its_body_never_comes_or_is_malformed(port: int) -> None:
    for rest in (b"", b"nonsense\r\n"):
        with opened(port) as one:
            one.sendall(GET)
            assert read_one(one) == (200, "0")
            one.sendall(b"POST /early HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert read_one(one) == (200, "0")
            one.sendall(rest)
            assert one.recv(100) == b""
    with opened(port) as one:
        one.sendall(GET)
        assert read_one(one) == (200, "0")
        one.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert read_one(one)[0] == 400


H2C = b"Host: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + H2C + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_an_upgrade_to_http2_is_ignored_and_the_connection_goes_on(port: int, size: int) -> None:
    requests = [
        (b"GET / HTTP/1.1\r\n" + H2C + b"\r\n", "0"),
        (b"POST / HTTP/1.1\r\n" + H2C + b"Content-Length: 5\r\n\r\nhello", "5"),
        (CHUNKED, "2"),
        (GET, "0"),
    ]
    with opened(port) as one:
        for request, length in requests:
            for start in range(0, len(request), size):
                one.sendall(request[start : start + size])
            assert read_one(one) == (200, length)
        one.sendall(b"".join(request for request, _ in requests))  # at once: none swallows the next
        text = b""
        while text.count(b"200 OK") < len(requests):
            more = one.recv(65536)
            assert more, text
            text += more
        assert [part[-1:] for part in text.split(b"HTTP/1.1")[1:]] == [b"0", b"5", b"2", b"0"]
        one.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: close, Upgrade\r\n\r\n")
        assert read_one(one) == (200, "0")
        assert one.recv(1) == b"", "its other wishes for the connection are heard"


JAVA = """
import java.net.URI; import java.net.http.*;
import java.net.http.HttpRequest.BodyPublishers; import java.net.http.HttpResponse.BodyHandlers;
public class Caller {
  public static void main(String[] a) throws Exception {
    HttpClient client = HttpClient.newHttpClient();
    for (String body : new String[] {"hello", "", "again"}) {
      HttpRequest request = HttpRequest.newBuilder(URI.create(a[0])).POST(BodyPublishers.ofString(body)).build();
      HttpResponse<String> answer = client.send(request, BodyHandlers.ofString());
      System.out.println(answer.statusCode() + " " + answer.body() + " " + answer.version());
    }
  }
}
"""


@pytest.mark.java
def test_javas_client_gets_its_answer_by_http_1_1(port: int, tmp_path: Path) -> None:
    source = tmp_path / "Caller.java"
    source.write_text(JAVA, encoding="utf-8")
    done = subprocess.run(
        ["java", str(source), f"http://127.0.0.1:{port}/"],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines() == ["200 5 HTTP_1_1", "200 0 HTTP_1_1", "200 5 HTTP_1_1"], done.stderr


def test_past_the_limit_the_longest_silent_are_closed_and_honest_callers_are_not(
    server: tuple[int, OpenConnections],
) -> None:
    port, connections = server
    with opened(port) as honest:
        honest.sendall(GET)
        assert read_one(honest) == (200, "0")
        crowd = [opened(port) for _ in range(60)]
        assert answer(port, GET) == (200, "0")
        assert len(connections) <= LIMITS.connections
        honest.sendall(GET)
        assert read_one(honest) == (200, "0")
        seconds_until_closed(crowd[0])
        for one in crowd:
            one.close()


def test_a_worker_whose_connections_all_work_says_that_it_is_full(port: int) -> None:
    busy = [opened(port) for _ in range(LIMITS.connections)]
    for one in busy:
        one.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: len(waiting) == LIMITS.connections)
    with opened(port) as late:
        assert read_one(late)[0] == 503
    released.set()
    assert {read_one(one) for one in busy} == {(200, "0")}
    for one in busy:
        one.close()


def test_who_is_answered_before_its_body_came_makes_room_for_a_new_caller_and_may_go_on() -> None:
    limits = replace(LIMITS, body_s=600.0, idle_s=600.0, rest_s=600.0)  # nobody is closed for being slow
    with bounded(app, limits) as (port, connections), contextlib.ExitStack() as closing:
        crowd = [closing.enter_context(opened(port)) for _ in range(limits.connections)]
        for one in crowd:
            one.sendall(EARLY)
            assert read_one(one) == (200, "0")
        late = closing.enter_context(opened(port))
        late.sendall(GET)
        assert read_one(late) == (200, "0")
        assert len(connections) == limits.connections
        seconds_until_closed(crowd[0])
        crowd[1].sendall(b"x" * 100 + GET)
        assert read_one(crowd[1]) == (200, "0"), "its next request"


def test_a_body_that_never_comes_after_the_answer_is_waited_for_less_than_one_before_it() -> None:
    limits = replace(LIMITS, body_s=600.0, idle_s=600.0)
    with bounded(app, limits) as (port, connections), opened(port) as one:
        one.sendall(EARLY)
        assert read_one(one) == (200, "0")
        assert seconds_until_closed(one) > limits.rest_s / 2
        wait_until(lambda: len(connections) == 0)


def test_refusals_are_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    connections = OpenConnections(LIMITS)
    for _ in range(1000):
        connections.log_refusal("400: nonsense")
    assert [record.getMessage() for record in caplog.records] == ["400: nonsense"]


def test_connections_fit_below_the_limit_of_open_files() -> None:
    assert open_file_limit(100) == 100


@pytest.mark.parametrize(("files", "connections"), [(256, 128), (1000, 744), (4000, 1000)])
def test_a_low_limit_of_open_files_leaves_half_of_it_to_connections(files: int, connections: int) -> None:
    code = "from serving.http.listening import open_file_limit; print(open_file_limit(1000))"
    command = ["sh", "-c", f'ulimit -n {files}; exec "$0" -c "$1"', sys.executable, code]
    assert subprocess.check_output(command, cwd=REPOSITORY).strip() == str(connections).encode()
