"""The demo: the whole loop on BBC News, poison included.

walk.py runs it on a `ratchet up` of its own (up_process.py); articles.py splits the texts, traffic.py simulates the app and its
users, report.py measures the outcome.
"""
