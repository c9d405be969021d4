"""The services' gunicorn worker and logger. They extend gunicorn's own classes."""
