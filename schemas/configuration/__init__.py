"""Configuration: the larger groups of settings, one module each.

Each module is a table of ratchet.toml: a frozen model whose fields say unit, default and meaning. settings.py composes them with
the smaller groups of setting_groups.py, reads files and environment, and refuses what is unknown.
"""
