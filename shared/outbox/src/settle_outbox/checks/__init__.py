"""Checks of a service: its database, topics and consumer group, and what to do about a fault."""
