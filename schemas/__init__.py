"""Every shape that crosses a process boundary: pydantic and the standard library, no I/O."""
