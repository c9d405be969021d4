"""PostgreSQL and Kafka brokers that `settle up` runs without Docker."""
