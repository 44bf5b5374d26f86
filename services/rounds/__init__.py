"""Rounds as processes: claimed by the scheduler, run beside serving, watched.

executor.py starts a niced process for a round and finds those that died; process.py is that process; disk_room.py
keeps room for feedback; failures.py says what stopped one and outcome_lines.py how one ended; announce.py publishes
the promotion; prune.py removes what past rounds have left.
"""
