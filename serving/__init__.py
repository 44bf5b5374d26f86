"""Serving: the inference API, the live model and the registry client.

service.py is the BentoML service, api.py defines its routes. live.py polls the registry twice a second. It fetches a new
champion while the old one serves, verifies every hash (artifacts.py, model_directory.py), compares the golden outputs and
then replaces one reference. The previous version stays loaded, so a rollback is immediate. One version answers a request.

Only the decoder runtime and text generator import torch, so an encoder's Bento carries none.
"""
