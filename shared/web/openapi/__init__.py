"""The description of an API (OpenAPI 3.1), and the pages that show it."""
