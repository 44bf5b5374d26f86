"""Inference: texts become calibrated predictions of the live model version.

batching.py groups waiting texts of similar length into turns; each waiting request gets one text into a turn before any
gets a second. generation_queue.py runs requests for generated text one at a time; admission.py refuses requests when a
queue is overloaded.

normalise.py normalises every text as in training. text_inputs.py turns texts into the base model's tokens, or into n-grams
(ngrams.py) for TF-IDF. encoder_runtime.py runs an ONNX graph; decoder_runtime.py runs a causal language model, and
text_generator.py decodes with it: only these two import torch. outputs.py turns logits into the predictions of each task, and
calibration.py applies the fitted maps with numpy alone. loading.py chooses the runtime, which compares its golden outputs at
every load. passes.py bounds a run's rows.

Evaluation uses the same runtimes, so gates judge what serves. Nothing here knows HTTP or the registry.
"""
