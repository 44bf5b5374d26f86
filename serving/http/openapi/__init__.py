"""OpenAPI: the document that describes the inference API.

document.py writes operations, examples and errors; schemas.py the shapes of requests, answers and corrections, by task,
from the models of serving/http/contract.py.
"""
