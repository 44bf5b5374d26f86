"""Commands about rows: training data, feedback, labels, and the labelling queue.

dataset.py previews, exports and excludes training rows; feedback.py and erasure.py export, replay and erase what people said;
labels.py changes the taxonomy. queue.py and queue_files.py label texts one by one or by file; exports.py writes files.
"""
