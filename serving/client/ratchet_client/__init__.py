"""The client of the inference API: a distribution of its own (../pyproject.toml) that apps install.

client.py and async_client.py send the same requests, with blocking calls or under asyncio. wire.py builds requests and reads
responses; it does no I/O. retries.py decides how long to wait before another attempt, and errors.py names what ends a call.
predictions.py holds what callers get back. tensorzero.py and openpipe.py are adapters for people who come from those products.

It needs httpx alone, and imports nothing else of Ratchet: the HTTP contract connects the two.
"""

from ratchet_client.async_client import AsyncClient
from ratchet_client.client import Client
from ratchet_client.errors import NotAuthorised, RatchetError, RequestRefused, Unavailable
from ratchet_client.predictions import Feedback, Item, Prediction, WrongTask
from ratchet_client.retries import Retries

__all__ = [
    "AsyncClient",
    "Client",
    "Feedback",
    "Item",
    "NotAuthorised",
    "Prediction",
    "RatchetError",
    "RequestRefused",
    "Retries",
    "Unavailable",
    "WrongTask",
]
