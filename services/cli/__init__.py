"""The command line `ratchet`, one module a noun.

main.py is the entry and turns every error into one line; project.py holds what commands share. Each command imports
what it needs when it runs, so that `ratchet status` starts fast.
"""
