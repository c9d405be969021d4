"""PostgreSQL's NOTIFY and LISTEN, with which processes need not wait for their next poll."""
