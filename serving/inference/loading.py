"""Load a model version with the runtime of its task.

Turns a verified directory into an encoder's `Runtime` or a decoder's `Writer`. live.py and rounds call it. torch is imported only
for a decoder, so that an encoder's Bento carries none.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Union

from serving.inference.encoder_runtime import Runtime
from serving.model_directory import read_manifest

if TYPE_CHECKING:
    from serving.inference.decoder_runtime import Writer

Loaded = Union[Runtime, "Writer"]


def open_version(directory: Path, digest: str | None = None, *, threads: int = 1) -> Loaded:
    """Load a version by the task that its manifest names. Raises what that runtime raises."""
    if read_manifest(directory).task == "generation":
        from serving.inference.decoder_runtime import Writer

        return Writer(directory, digest, threads=threads)
    return Runtime(directory, digest, threads=threads)
