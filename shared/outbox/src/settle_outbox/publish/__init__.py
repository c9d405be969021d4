"""From the outbox to the topic: add events, lock and read them, send them, mark them as sent."""
