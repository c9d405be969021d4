"""Payments: one account per user, deposits, and charges for orders."""
