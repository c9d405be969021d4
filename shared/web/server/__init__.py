"""gunicorn's worker and logger, as the services run them."""
