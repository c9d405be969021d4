"""The tables of settle_outbox in a service's database, and the connections to this database."""
