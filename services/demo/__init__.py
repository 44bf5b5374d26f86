"""The demo: the whole loop on BBC News, poison included.

walk.py runs it and judges what happened; traffic.py plays the app and its users.
"""
