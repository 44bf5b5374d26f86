"""Import Feast without what it is not used for here: torch, and type checks that it compiles into its classes.

Both together are most of the seconds and of the memory that `import feast` takes (docs/lab-notes.md). feast_views.py calls
`import_feast` before it opens Feast.
"""

import importlib
import sys
import threading
from types import ModuleType
from typing import Any

_LOCK = threading.Lock()


def import_feast() -> None:
    """Import Feast and the stores of a default project, unless somebody has imported Feast already."""
    with _LOCK:
        if "feast" in sys.modules:
            return
        import typeguard

        sys.modules["feast.torch_wrapper"] = _torch_on_demand()
        checked, typeguard.typechecked = typeguard.typechecked, _unchecked  # type: ignore[assignment]
        try:
            for name in ("feast", "pipelines.feature_store.offline_store", "pipelines.feature_store.online_store"):
                importlib.import_module(name)
        finally:
            typeguard.typechecked = checked


def _unchecked(target: Any) -> Any:
    """Return a class or function as it is, where typeguard would parse its module and compile it anew."""
    return target


def _torch_on_demand() -> ModuleType:
    """Return a module like `feast.torch_wrapper`, which imports torch when it is asked for instead of at once."""
    wrapper = ModuleType("feast.torch_wrapper", "torch, when a feature is a tensor")
    vars(wrapper)["get_torch"] = lambda: importlib.import_module("torch")
    return wrapper
