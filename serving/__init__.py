"""The live model and its API; with schemas, all that a Bento holds."""
