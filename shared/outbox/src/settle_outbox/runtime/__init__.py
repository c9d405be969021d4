"""What every process needs: its main loop, stop, health file and threads."""
