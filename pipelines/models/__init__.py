"""Models: the pretrained base, an encoder or a decoder, and the linear probe.

base_models.py opens the base model that the settings name. encoder.py embeds texts by mean pooling and carries LoRA
adapters with a linear head; decoder.py does the same for a causal language model. probe.py fits logistic, one-vs-rest
or ridge regression on frozen embeddings: the baseline that a round must beat.
"""
