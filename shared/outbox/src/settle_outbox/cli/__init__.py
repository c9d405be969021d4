"""The commands of the engine: outbox-relay, inbox-consumer and outbox-doctor."""
