"""Every error is answered with a problem document (RFC 9457)."""
