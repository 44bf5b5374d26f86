"""Sources: rows from files, feedback, the labelling queue and predictions that nobody challenged.

collect.py turns file rows and feedback into examples, queue_labels.py what people labelled in the queue. replayed.py chooses
unchallenged predictions that train beside corrections.
"""
