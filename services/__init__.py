"""Services: the processes that run in the background, and the command line that starts them.

feedback_consumer.py stores events, training_scheduler.py claims rounds, up.py supervises every process of one
machine, projects.py makes and opens project folders, erasure.py deletes events for good. The processes never import
one another: they share Kafka, the event log, the registry and the artefact store.
"""
