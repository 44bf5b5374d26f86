"""Models: the pretrained base model, an encoder or a decoder, and the linear probe.

base_models.py opens the base model that the settings name; base_files.py checks that it exists. encoder.py embeds texts
by mean pooling and carries LoRA adapters with a linear head. decoder.py carries LoRA adapters on a causal language
model. probe.py fits logistic, one-vs-rest or ridge regression on frozen embeddings: the baseline of a round.
"""
