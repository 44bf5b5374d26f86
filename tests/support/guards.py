"""A guard that knows a project's own key alone, for tests of what lies behind it."""

from schemas.settings import Settings
from serving.http.access import Keys
from serving.http.counters import Counters
from serving.http.guard import Guard
from serving.http.keyring import Keyring


def lone_guard(settings: Settings, keys: Keys) -> Guard:
    uses = settings.path(settings.artifacts.cache) / "token-uses.db"
    return Guard(settings, keys.secret, Keyring(keys), Counters(settings.model.name, settings.access.counters, uses))
