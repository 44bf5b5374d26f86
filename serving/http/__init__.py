"""HTTP: connections, requests, validation, access control and responses of the inference API.

connections.py and listening.py limit connections in time, bytes and number; upgrades.py ignores offers of HTTP/2. front.py serves
the documentation and feedback.js, the widget for web pages; it passes only BentoML's probes on to BentoML. asgi.py reads request
bodies and writes refusals; routes.py selects the route.

guard.py decides who may call: by the keys of keyring.py and their roles, the feedback tokens of access.py, the rates of
counters.py and the checksums of prediction_ids.py. contract.py defines requests and responses, and openapi/ publishes them.
request_checks.py and feedback_values.py apply settings, task and taxonomy. responses.py writes responses and prediction events.

serving/api.py calls these modules. Nothing here imports BentoML or Kafka. Every refusal is `{"error", "detail"}` with a
matching status.
"""
