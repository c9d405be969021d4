"""PostgreSQL's NOTIFY and LISTEN, which save the wait for the next poll."""
