"""Tells users what became of their orders."""
