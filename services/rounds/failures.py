"""What stopped a round, in words that say what to do.

Turns the error of a round's process, or the code it ended with, into one line. rounds/process.py writes it into the round's
detail, the training scheduler says it of a process that could say nothing itself. It decides nothing.
"""

import errno
import signal

# What allocators and loaders say when there is no memory: PyTorch, ONNX Runtime, glibc's loader, CUDA.
_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "failed to map segment from shared object",
    "std::bad_alloc",
)
_WAY_OUT = "give this machine more, or lower training.batch_size, training.threads or model.max_length"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or what it was raised from, says that there is no memory left."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        said = str(one).lower()
        if isinstance(one, MemoryError) or (isinstance(one, OSError) and one.errno == errno.ENOMEM):
            return True
        if any(words in said for words in _NO_MEMORY):
            return True
        one = one.__cause__ or one.__context__
    return False


def sentence(error: BaseException) -> str:
    """Return what stopped an attempt, in one line."""
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"out of memory ({said}): {_WAY_OUT}" if out_of_memory(error) else said


def ending(code: int | None) -> str | None:
    """Return what a process's exit code says that its round's record cannot; None if nothing."""
    if code is None or code >= 0:
        return None
    if -code == signal.SIGKILL:
        return f"killed, most likely out of memory: {_WAY_OUT}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"
