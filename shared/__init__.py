"""What the services have in common: the delivery engine, the web layer, settings, logging."""
