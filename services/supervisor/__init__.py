"""The supervisor's parts: children, the broker's memory, consumers that hang, signals, addresses and folders.

children.py watches, logs and restarts a process; a mark in its environment lets the next `ratchet up` find the
children of a killed one. broker_memory.py restarts the embedded broker before its memory fills the machine.
project_watch.py names a consumer that has stopped reporting, and a disk that is nearly full.
state_file.py writes state/up.json. signals.py turns signals into an event; own_address.py binds and requests this
machine's addresses; writable_folders.py gives libraries folders where the machine offers none.
"""
