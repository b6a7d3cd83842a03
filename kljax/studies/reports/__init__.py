"""Reports on studies: tables, comparisons, curves, pictures, and one page of it all.

Cells that differ in nothing but the seed are pooled; nothing else is averaged. Every
success rate stands beside its floor, and an attack that did not match its gradient
never counts for a defence.
"""

from kljax.metrics import VALUES
from kljax.studies.reports.threats import threat_words
from kljax.studies.reports.writing import write_report

__all__ = ["write_report", "threat_words", "VALUES"]
