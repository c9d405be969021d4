"""The engine's command lines: outbox-relay and inbox-consumer."""
