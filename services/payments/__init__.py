"""The payments service: keeps an account per user, takes deposits, and pays for orders."""
