"""The operator's command line: run, check and audit the whole system on one machine."""
