"""What processes share: the main loop, the stop, the health file, a clock and daemon threads."""
