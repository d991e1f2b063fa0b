"""Reports of results: tables, figures and HTML pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .figures import figure_before_after
    from .record import MethodResult
    from .report import write_report
    from .tables import print_table

__all__ = [
    "MethodResult",
    "figure_before_after",
    "print_table",
    "write_report",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "figures": "figure_before_after",
        "record": "MethodResult",
        "report": "write_report",
        "tables": "print_table",
    },
)
