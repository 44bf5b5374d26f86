"""Ratchet as an installed package: the application's folders, and the command that starts it.

The wheel maps `schemas`, `serving`, `pipelines` and `services` into this package, so that no top-level module of these names
lands in site-packages. command.py puts this folder first on the import path; the application's own imports stay as they are.
"""
