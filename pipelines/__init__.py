"""How a better model is made; no long-running process of its own."""
