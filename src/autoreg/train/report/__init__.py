"""The report of a training: one page that shows what it did and what it learned, and needs nothing but itself."""

from autoreg.train.report.page import report_path, write_report

__all__ = ["report_path", "write_report"]
