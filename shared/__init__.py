"""What the services have in common: the web layer, its settings, the idempotency keys."""
