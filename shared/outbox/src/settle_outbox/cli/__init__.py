"""The commands of the engine: outbox-relay and inbox-consumer."""
