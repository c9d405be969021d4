"""The worker and the logger of the services: classes of gunicorn, extended."""
