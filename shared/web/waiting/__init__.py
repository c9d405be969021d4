"""The header Prefer (RFC 7240), and requests that wait for a result."""
