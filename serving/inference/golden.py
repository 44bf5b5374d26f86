"""Golden outputs: a version's outputs for a few inputs, recorded when it was made.

The encoder and the decoder runtime compare them when they load a version.
"""


class GoldenMismatch(ValueError):
    """The loaded artefact's outputs for the golden inputs differ from the recorded ones by more than the tolerance."""
