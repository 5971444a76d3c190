"""The report of an examination: facts, findings and figures, as text and as an exit code."""

from __future__ import annotations

from pydantic import BaseModel

from inference.doctor.explanations import EXPLANATIONS, Severity
from inference.validation import shorten

LONGEST_TEXT = 400  # characters of a finding: it may quote a stranger's file


# 1 is a crash of Python and 2 a problem with the command's input, so the codes of findings start above them.
EXIT_CODES = {Severity.ERROR: 4, Severity.WARNING: 3, Severity.NOTE: 0}


class Finding(BaseModel):
    """One finding. `code` is its stable name, `what` a sentence, `effect` what users see, `fix` what to do."""

    severity: Severity
    code: str
    what: str
    effect: str
    fix: str


class TensorType(BaseModel):
    """How much of a file has one type: the number of tensors, their values and bytes, and the kinds of layers."""

    name: str
    tensors: int
    values: int
    bytes: int
    layers: list[str]


class Figures(BaseModel):
    """What a file computes beside the original on fixed prompts.

    Attributes:
        positions: the number of compared next-token distributions.
        kl: their mean KL(original || file) in nats.
        top1: the share of them with equal top-1 tokens.
        layer_errors: for each layer, the root mean square of its output's difference, relative to the original's.
        first_layer: the first layer whose output differs by more than rounding explains; None if there is none.
    """

    positions: int
    kl: float
    top1: float
    layer_errors: list[float]
    first_layer: int | None


class Report(BaseModel):
    """What the doctor says about `target`. `facts` are pairs of a name and a value; `figures` need an original."""

    target: str
    against: str | None = None
    facts: dict[str, str] = {}
    types: list[TensorType] = []
    findings: list[Finding] = []
    figures: Figures | None = None
    figures_missing: str = ""

    def add(self, code: str, what: str) -> None:
        """Add a finding of the kind `code`, with the sentence `what`. The worst ones come first."""
        kind = EXPLANATIONS[code]
        what = shorten(what, LONGEST_TEXT)
        self.findings.append(Finding(severity=kind.severity, code=code, what=what, effect=kind.effect, fix=kind.fix))
        self.findings.sort(key=lambda finding: list(Severity).index(finding.severity))

    @property
    def exit_code(self) -> int:
        """The code of the worst finding."""
        return max((EXIT_CODES[finding.severity] for finding in self.findings), default=0)
