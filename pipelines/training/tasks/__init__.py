"""Training tasks: rows, losses, metrics and heads, one module a task.

task.py is the Protocol that the trainer uses; choose.py picks a task by name. classification.py, multilabel.py and
regression.py put linear heads on an encoder (encoder_task.py). generation.py trains a decoder on prompts and
completions (token_rows.py), with the loss on the completion's tokens alone.
"""
