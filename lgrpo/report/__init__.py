"""`report.html` and `curves.png` of a run: everything it recorded, on one page that needs nothing else."""

from lgrpo.report.write import CURVES, PAGE, write_report

__all__ = ["CURVES", "PAGE", "write_report"]
