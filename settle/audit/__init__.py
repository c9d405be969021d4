"""The audit: reconciles both databases and both topics, and reports violations with ids."""

from settle.audit.report import AuditError, Check, Report, Violation
from settle.audit.run import audit

__all__ = ["AuditError", "Check", "Report", "Violation", "audit"]
