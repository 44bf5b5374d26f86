"""The fast tier of anonymisation: what it finds, what it leaves, and what it costs on hostile text."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.anonymise import anonymise

FOUND = {
    "<EMAIL>": [
        "bob@example.org",
        "a.b+c@sub.example.co.uk",
        '"john doe"@example.com',
        "x@münchen.de",
        "a" * 90 + "@example.com",
        "bob@192.0.2.1",
    ],
    "<IP>": [
        "10.0.0.1",
        "192.168.001.254",
        "::1",
        "2001:db8::8a2e:370:7334",
        "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
        "::ffff:192.0.2.1",
    ],
    "<IBAN>": [
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "de89370400440532013000",
        "FR14 2004 1010 0505 0001 3M02 606",
        "NO93 8601 1117 947",
    ],
    "<CARD>": ["4111 1111 1111 1111", "4111111111111111", "5500-0000-0000-0004", "3400 000000 00009", "4222222222222"],
    "<PHONE>": [
        "+44 20 7946 0958",
        "+44 (0)20 7946 0958",
        "+1-212-555-0123",
        "+33612345678",
        "0049 30 12345678",
        "(020) 7946 0958",
        "(212) 555-0123",
        "020 7946 0958",
        "02079460958",
        "0171/1234567",
        "06 12 34 56 78",
        "06.12.34.56.78",
        "212-555-0123",
        "1-800-555-0199",
        "+44\u00a020\u00a07946\u00a00958",
    ],
}


@pytest.mark.parametrize(("placeholder", "secret"), [(p, s) for p, secrets in FOUND.items() for s in secrets])
@pytest.mark.parametrize("around", ["{}", "please use {}, thanks.", "({})", "it is:{}\n", "x,{},y"])
def test_what_identifies_a_person_is_replaced_whole(placeholder: str, secret: str, around: str) -> None:
    assert anonymise(around.format(secret)) == around.format(placeholder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:pw@host/x", "https://<CREDENTIALS>@host/x"),
        ("postgres://u:p@ss@db:5432/x", "postgres://<CREDENTIALS>@db:5432/x"),
        ("git://token@host.io", "git://<CREDENTIALS>@host.io"),
        ("ip 10.0.0.1:8080", "ip <IP>:8080"),
        ("DE89370400440532013000 IBAN", "<IBAN> IBAN"),
        ("020 7946 0958 on 01.02.2024", "<PHONE> on 01.02.2024"),
        ("from +44 20 7946 0958 2024-01-02", "from <PHONE> 2024-01-02"),
        ("card 9999 4111 1111 1111 1111", "card 9999 <CARD>"),
        ("bob@example.org 10.0.0.1 +33612345678", "<EMAIL> <IP> <PHONE>"),
    ],
)
def test_what_stands_beside_it_stays(text: str, expected: str) -> None:
    assert anonymise(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no digits at all",
        "order 12345678",
        "order 1234567890",
        "order 0012345678",
        "2024-11-24",
        "24.11.2024",
        "01.02.2024 10:30",
        "01.02.2024 10",
        "12:30:45",
        "10:00-11:00",
        "1,234,567.89",
        "1 500 000 EUR",
        "+1 500 000",
        "0.123456789012",
        "3.4111111111111111",
        "version 1.2.3",
        "1.2.3.4.5",
        "std::vector<int>",
        "abc::def",
        "aa:bb:cc:dd:ee:ff",
        "4111 1111 1111 1112",
        "GB82WEST12345698765433",
        "3 apples@3.50 each",
        "team@work",
        "550e8400-e29b-41d4-a716-446655440000",
        "01900000-0000-7000-8000-000000000000",
        "1732406400000",
        "ISBN 978-3-16-148410-0",
        "(2019) 1234567",
    ],
)
def test_numbers_that_identify_nobody_stay(text: str) -> None:
    assert anonymise(text) == text


PIECES = [secret for secrets in FOUND.values() for secret in secrets]
MIXED = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.text("0123456789+-./:@() \"'<>aGB", max_size=12),
        st.sampled_from(["://", " ", ",", ".", "-", ":", "/", "4111 1111 1111 1111", "<PHONE>", "\u00a0"]),
    ),
    max_size=8,
).map("".join)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(MIXED)
@example("0123456789.1.2.3.4")
@example("<CREDENTIALS>@x.org")
def test_twice_is_once(text: str) -> None:
    once = anonymise(text)
    assert anonymise(once) == once


@pytest.mark.parametrize(
    "unit",
    'a|1|1 |4444 |@|a@|a.|a@a.|a@b.c+|://a@|"a|01 |+1|GB12 |GB12|1:|::|1.|(02)|00|212-|4111 1111 1111 1112 '.split("|"),
)
def test_a_hostile_megabyte_costs_no_more_than_its_length(unit: str) -> None:
    def seconds(length: int) -> float:
        text = (unit * (length // len(unit) + 1))[:length]
        started = time.process_time()
        anonymise(text)
        return time.process_time() - started

    # A quadratic pattern takes 64 times as long for 8 times the text; the floor absorbs the clock's grain.
    assert seconds(1_000_000) < 30 * max(0.02, seconds(125_000))
