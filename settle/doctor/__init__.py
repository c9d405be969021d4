"""`settle doctor`: find out why the stack does not start, or what is wrong with a running one.

The checks of this machine and of this system's services are here. Those of any service that is
built on the engine are in `settle_outbox.checks`.
"""
