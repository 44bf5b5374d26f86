"""Services run in the background, and people start them.

feedback_consumer.py stores events, training_scheduler.py claims rounds, up.py supervises every process of one
machine, projects.py makes and opens project folders. They never import one another's processes: they meet in Kafka,
the event log, the registry and the artefact store.
"""
