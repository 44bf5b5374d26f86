"""Serving answers requests: the inference API, the live model and the registry client.

service.py is the BentoML service, api.py its routes. live.py polls the registry twice a second; a new champion is
fetched beside the old one (artifacts.py checks every hash), its golden outputs are compared, and one reference is
replaced. The version before stays loaded, so a rollback is immediate. A request is answered by one version.

Everything else hangs in the rooms below. No module here imports torch but the decoder runtime, so an encoder's Bento
carries none.
"""
