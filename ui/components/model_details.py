"""What the models tab knows of a model: its run record and its size on this disk."""

from __future__ import annotations

from inference.catalog import Entry
from inference.errors import LabError, visitor_message
from inference.hub import artifacts
from inference.lab import Lab
from inference.run_records import RunRecord, RunRecords
from ui.views.model_card import facts_html


class ModelDetails:
    """Reads the run records of a lab's models and renders their facts."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.run_records = RunRecords()

    def facts_html(self, entry: Entry) -> str:
        """Return the facts of a card. Uses no network."""
        run_record, problem = None, ""
        try:
            run_record = self.run_records.read_local(entry)
        except LabError as error:
            problem = visitor_message(error)
        catalog = self.lab.catalog
        base = catalog[entry.base].name if entry.base and entry.base in catalog else entry.base or ""
        state = self.lab.state(entry)
        status = "not downloaded" if state.kind == "download" else state.text  # the size has its own line
        return facts_html(entry, run_record, base, status, self.size_on_disk(entry), problem)

    def size_on_disk(self, entry: Entry) -> int | None:
        """Return the bytes of the model's own weights on this disk, without its base's; None if there are none."""
        path = artifacts.on_disk(entry, self.lab.engines.form_for(entry))
        if path is None:
            return None
        files = [path] if path.is_file() else path.glob("*.safetensors")
        return sum(file.stat().st_size for file in files) or None

    def run_record(self, entry: Entry) -> RunRecord:
        """Return the run record, from the Hub if needed. Raises LabError if there is none."""
        if entry.folder is None and entry.repo is None:
            problem = self.lab.state(entry).explanation
            raise LabError(problem or f"{entry.name} runs on a remote server, which has no run record.")
        return self.run_records.read(entry)
