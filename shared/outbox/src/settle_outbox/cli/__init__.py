"""The commands of settle_outbox: outbox-relay, inbox-consumer and outbox-doctor."""
