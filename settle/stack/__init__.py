"""The stack on this machine: start it, stop it, show its state, remove it."""
