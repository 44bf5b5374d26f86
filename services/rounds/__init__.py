"""Rounds as processes: the scheduler claims a round, an executor runs it beside serving.

executor.py starts a niced process for a round and tells whether it lives; process.py is that process. disk_room.py
reserves disk space for feedback. failures.py describes errors, outcome_lines.py outcomes. announce.py publishes
promotions. prune.py removes files that past rounds no longer need. settling.py ends rounds by labels; queue_filler.py starts
queue_filling.py, which queues texts to label.
"""
