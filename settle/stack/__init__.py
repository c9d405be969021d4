"""The stack on this machine: start it, stop it, ask how it is, and remove it."""
