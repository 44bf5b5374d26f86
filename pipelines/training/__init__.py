"""Training: LoRA adapters, all weights or a linear head, kept only if they beat the baselines.

trainer.py is the recipe. epoch_search.py chooses the number of epochs on held-out rows, by cross-validation while
rows are few; fitting.py runs one fit. hyperparameter_search.py looks for a better recipe first, if asked to. baselines.py chooses
the regularisation of the probe and of TF-IDF, which serves where it wins. warm_start.py starts from the champion's weights;
frozen_layers.py runs frozen layers only once; label_names.py makes a training row of each label's name; history.py keeps losses
and rates.

The trainer depends on tasks only through the Protocol in tasks/task.py.
"""
