"""The orders service: places orders, and settles them when payments has decided."""
