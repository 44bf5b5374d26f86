"""Checks: find what is wrong with a project before anything runs.

preflight.py checks settings, keys, policy and files; `init`, `doctor` and `up` share it. data_summary.py summarises
the labelled files and refuses those that cannot train or judge. champion.py verifies the files of the champion and of
the versions that it may roll back to. copies.py notices a folder that is a copy of another project's.
"""
