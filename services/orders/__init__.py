"""Orders: places orders, and gives them their final status when payments has decided."""
