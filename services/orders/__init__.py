"""Orders: they are taken, await their payment, and end as success or failed."""
