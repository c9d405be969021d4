"""The orders service: places orders. They are final when the payments service has decided."""
