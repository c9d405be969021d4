"""What the services have in common: the web layer, its settings, fields, and migrations."""
