"""The audit of one upload: what somebody's gradient or update gives away."""

from kljax.studies.audit.auditing import Audit, audit
from kljax.studies.audit.facts import AuditConfig
from kljax.studies.audit.page import page_of, table, write_audit

__all__ = ["Audit", "AuditConfig", "audit", "page_of", "table", "write_audit"]
