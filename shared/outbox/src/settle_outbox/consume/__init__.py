"""From the topic to the handler: read records, apply each event once, or keep a dead letter."""
