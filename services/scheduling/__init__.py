"""Scheduling: ticks and crontabs, the only room that imports APScheduler.

ticker.py calls a function at a fixed interval even if the wall clock is set; crontab.py parses `triggers.cron`, in UTC.
paced.py keeps a costly read to a tenth of the time. metrics.py shows ticks, rounds and verdicts to Prometheus.
"""
