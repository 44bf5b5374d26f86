"""Inference: texts to calibrated outputs, with the model that is live.

batching.py groups waiting texts of similar length into turns; every waiting request gets one text into a turn before
any gets a second. generation_queue.py does the same for a decoder, one request at a time. encoder_runtime.py runs an
ONNX graph, decoder_runtime.py a causal language model on torch, which no other module of serving imports. outputs.py
turns logits into the answer of each task, and calibration.py applies the fitted maps with numpy alone. loading.py
chooses the runtime; golden outputs are checked at every load.

Evaluation runs the same runtimes, so what the gates judge is what serves. Nothing here knows HTTP or the registry.
"""
