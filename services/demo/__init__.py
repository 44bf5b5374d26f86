"""The demo: the whole loop on BBC News, poison included.

walk.py runs it; articles.py splits the texts, traffic.py simulates the app and its users, report.py measures the outcome.
"""
