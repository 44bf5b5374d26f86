"""The command line `ratchet`, one module for each noun; those about rows are in rows/.

main.py is the entry point and prints every error as one line; project.py holds the options that commands share, and
identity.py finds out who acts. Each command imports what it needs when it runs, so that `ratchet status` starts fast.
"""
