"""A report as text for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from inference.doctor.report import Finding, Report


def printed(report: Report) -> str:
    """The report as lines."""
    lines = [report.target]
    width = max(map(len, report.facts), default=0)
    lines += [f"  {name:{width}}  {value}" for name, value in report.facts.items()]
    lines += ["", *types_table(report)] if report.types else []
    if report.against:
        lines += ["", f"Beside {report.against}:", *figures_lines(report)]
    lines.append("")
    for finding in report.findings:
        lines += finding_lines(finding)
    return "\n".join([*lines, verdict(report)])


def types_table(report: Report) -> Iterator[str]:
    """The types of the tensors."""
    yield f"  {'type':8} {'tensors':>7} {'MB':>9} {'bits/weight':>11}  layers"
    for kind in report.types:
        bits = 8 * kind.bytes / max(1, kind.values)
        layers = ", ".join(kind.layers[:8]) + (", …" if len(kind.layers) > 8 else "")
        yield f"  {kind.name[:8]:8} {kind.tensors:7} {kind.bytes / 1e6:9,.1f} {bits:11.2f}  {layers}"


def figures_lines(report: Report) -> Iterator[str]:
    """What both compute."""
    figures = report.figures
    if figures is None:
        yield f"  No figures. {report.figures_missing}".rstrip()
        return
    first = "none" if figures.first_layer is None else str(figures.first_layer)
    yield f"  KL divergence  {figures.kl:.2g} nats, mean of {figures.positions} positions"
    yield f"  top-1 tokens   {100 * figures.top1:.1f} % are equal"
    yield f"  first layer that differs by more than rounding: {first}"
    errors = figures.layer_errors
    yield "  difference by layer: " + " ".join(f"{100 * error:.2g}%" for error in errors)


def finding_lines(finding: Finding) -> list[str]:
    """A finding with its effect and its fix."""
    return [
        f"{finding.severity.value}: {finding.what} [{finding.code}]",
        f"  users see: {finding.effect}",
        f"  fix: {finding.fix}",
        "",
    ]


def verdict(report: Report) -> str:
    """The last line: how many findings of each severity there are."""
    counts: dict[str, int] = {}
    for finding in report.findings:
        counts[finding.severity.value] = counts.get(finding.severity.value, 0) + 1
    listed = ", ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items())
    return listed or "nothing is wrong"
