"""A service that tells users what became of their orders."""
