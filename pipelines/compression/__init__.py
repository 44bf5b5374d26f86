"""Compression: a trained model exported to ONNX, and made smaller.

export.py merges adapters, writes the graph and quantises weights to int8; packing.py removes padding outside attention.
distillation.py trains a student of fewer layers on the full model's outputs, and pruning.py chooses which attention
heads and feed-forward units it keeps. Whether a smaller model may serve is judged in gates/compressed.py.
"""
