"""Load a model version with the runtime of its task.

Turns a model version's directory into a `Runtime` (encoder) or a `DecoderRuntime`. live.py and rounds call it. torch is imported
only for a decoder, so that an encoder's Bento carries none.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Union

from serving.inference.encoder_runtime import Runtime
from serving.model_directory import read_manifest

if TYPE_CHECKING:
    from serving.inference.decoder_runtime import DecoderRuntime

Loaded = Union[Runtime, "DecoderRuntime"]


def open_version(directory: Path, digest: str | None = None, *, threads: int = 1) -> Loaded:
    """Return the version's runtime, chosen by the manifest's task. Raises ArtifactDamaged, GoldenMismatch or UnknownTask."""
    if read_manifest(directory).task == "generation":
        from serving.inference.decoder_runtime import DecoderRuntime

        return DecoderRuntime(directory, digest, threads=threads)
    return Runtime(directory, digest, threads=threads)
