"""Failures of a round, described with the way out.

Turns the error or the exit code of a round's process into one line of the round's detail. rounds/process.py reports errors, the
training scheduler the exit codes of killed processes; the command line reports errors of memory by it too.
"""

import errno
import signal

# Messages of allocators and loaders without memory: PyTorch, ONNX Runtime, glibc's loader, CUDA.
_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "failed to map segment",
    "bad_alloc",
)
_WAY_OUT = "give this machine more, or lower training.batch_size, training.threads or model.max_length"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, means that memory ran out."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        message = str(one).lower()
        if isinstance(one, MemoryError) or (isinstance(one, OSError) and one.errno == errno.ENOMEM):
            return True
        if any(words in message for words in _NO_MEMORY):
            return True
        one = one.__cause__ or one.__context__
    return False


def sentence(error: BaseException) -> str:
    """Return a one-line description of the error that stopped an attempt."""
    message = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"out of memory ({message}): {_WAY_OUT}" if out_of_memory(error) else message


def ending(code: int | None) -> str | None:
    """Return which signal ended a process, by its exit code; None if none did."""
    if code is None or code >= 0:
        return None
    if -code == signal.SIGKILL:
        return f"killed, most likely out of memory: {_WAY_OUT}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"
