"""The audit: reconciles both databases and both topics, and reports violations with ids."""
