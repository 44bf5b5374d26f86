"""HTTP: connections, requests, validation, access control and responses of the inference API.

connections.py and listening.py limit connections in time, bytes and number; front.py passes only BentoML's probes on to BentoML.
asgi.py reads request bodies and writes refusals; routes.py selects the route. access.py checks API keys and feedback
tokens before a body is read. contract.py defines requests, responses and the OpenAPI document. request_checks.py and
feedback_values.py apply settings, task and taxonomy. responses.py writes responses and prediction events.

serving/api.py calls these modules. Nothing here imports BentoML or Kafka. Every refusal is `{"error", "detail"}` with a
matching status.
"""
