"""The report of an examination as HTML: what the file is, its findings with their fixes, and its types of tensors."""

from __future__ import annotations

import html

from inference.doctor.printed import figures_lines, verdict
from inference.doctor.report import Finding, Report
from ui.views.text import message_html


def report_html(report: Report) -> str:
    """Return the report. All texts are escaped: they may quote a stranger's file."""
    facts = "".join(
        f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in report.facts.items()
    )
    findings = "".join(map(finding_html, report.findings))
    figures = "<br>".join(html.escape(line.strip()) for line in figures_lines(report)) if report.against else ""
    return (
        f"<section class=run-record aria-label='Examination'><p role=status><b>{html.escape(report.target)}: "
        f"{html.escape(verdict(report))}</b></p><ul>{findings}</ul><p>{figures}</p>"
        f"<table><caption>What the file is</caption>{facts}</table>{types_html(report)}</section>"
    )


def finding_html(finding: Finding) -> str:
    """Return a finding as a list item."""
    return (
        f"<li><b>{finding.severity.value}:</b> {message_html(finding.what)}<br>Users see: "
        f"{message_html(finding.effect)}<br>Fix: {message_html(finding.fix)}</li>"
    )


def types_html(report: Report) -> str:
    """Return the types of the tensors as a table."""
    rows = "".join(
        f"<tr><td>{html.escape(kind.name)}</td><td>{kind.tensors}</td><td>{kind.bytes / 1e6:,.1f} MB</td>"
        f"<td>{8 * kind.bytes / max(1, kind.values):.2f} bits</td></tr>"
        for kind in report.types
    )
    return f"<table><caption>Quantization</caption>{rows}</table>" if rows else ""
