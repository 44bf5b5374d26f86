"""Golden outputs: what a version answered to a few inputs when it was made.

encoder and decoder runtimes check them as they load. It deliberately knows neither.
"""


class GoldenMismatch(ValueError):
    """The artefact does not answer its own golden inputs as it did when it was made."""
