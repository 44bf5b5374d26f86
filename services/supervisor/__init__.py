"""The supervisor's parts: children, signals, addresses and folders.

children.py watches, logs and restarts a process; a mark in its environment lets the next `ratchet up` find what a
killed one left. signals.py keeps ignored signals ignored; own_address.py asks our own addresses without a proxy;
writable_folders.py gives libraries folders where the machine offers none.
"""
