"""The HTTP contract: requests in, checked, answered or refused.

front.py lets only known paths pass; connections.py and listening.py bound connections in time, bytes and number.
asgi.py turns a connection into a request and refusals into bytes; routes.py picks the route. access.py checks API
keys and feedback tokens before a body is read. contract.py holds the shapes of requests and the OpenAPI document;
request_checks.py and feedback_values.py check what depends on settings, task and taxonomy; responses.py writes
answers and their prediction events, which share bytes.

serving/api.py calls all of it. Nothing here knows BentoML, Kafka or a model. Every refusal is `{"error", "detail"}`
with the right status.
"""
