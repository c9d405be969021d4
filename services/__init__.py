"""The two services, payments and orders. They communicate only by events."""
