"""PostgreSQL and a Kafka-protocol broker from wheels, for machines without Docker."""
