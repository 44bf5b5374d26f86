"""Compression: a trained model exported to ONNX, and made smaller.

export.py merges adapters, writes the graph and quantises it to int8, with fixed ranges of activations
(activation_ranges.py); packing.py removes padding outside attention; tfidf_graph.py exports TF-IDF.
distillation.py trains a student of fewer layers on the full model's outputs, and pruning.py chooses which attention
heads and feed-forward units it keeps. Whether a smaller model may serve is judged in gates/compressed.py.
"""
