"""The call of a handler: its session, its guard, its traces and its contract."""
