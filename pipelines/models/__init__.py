"""Models: the pretrained base model, an encoder or a decoder, and the linear probe.

base_models.py opens the base model that the settings name; base_files.py refuses one that is missing, unsupported
(families.py) or too large (base_facts.py, machine.py); token_statistics.py measures how its tokenizer reads a project's texts.
encoder.py embeds texts by mean pooling and carries LoRA adapters with a linear head, decoder.py carries them on a causal language
model. dropout.py makes cheap dropout masks.

probe.py fits logistic, one-vs-rest or ridge regression on frozen embeddings, tfidf.py on weighed n-grams: the baselines of a
round.
"""
