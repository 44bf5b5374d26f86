"""Training: LoRA adapters, all weights or a head, kept only if they beat the probe.

trainer.py is the recipe; epoch_search.py chooses the number of epochs on held-out rows, by cross-validation while
rows are few; fitting.py runs one fit. warm_start.py goes on from the champion's adapter; frozen_layers.py runs layers
that do not change only once; label_names.py makes a row of each label's own words; history.py keeps losses and rates.

The trainer knows tasks only through the Protocol in tasks/task.py.
"""
