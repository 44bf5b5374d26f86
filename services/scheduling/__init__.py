"""Scheduling: when something is due. APScheduler is imported here alone.

ticker.py calls a function every few seconds whatever happens to the wall clock; crontab.py reads `triggers.cron`, in
UTC.
"""
