"""Pages of the console, one module a noun: each turns the registry and the event log into a template's values.

A page is a function from a `Visit` to a response. It changes nothing: a form's POST calls a function of actions.py.
"""
