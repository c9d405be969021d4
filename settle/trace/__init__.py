"""Follow one order through both services: what happened to it, when, and what it waits for."""
