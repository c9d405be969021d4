"""The operator's command line: the whole system, up and down, on one machine."""
