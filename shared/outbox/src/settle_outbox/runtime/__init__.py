"""What every process needs: its loop, its stop, its health file, its threads."""
