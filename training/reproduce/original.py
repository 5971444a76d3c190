"""The run that is reproduced: a folder on this disk, or a repository on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from inference.settings import PROJECT
from training.recipe import Recipe
from training.run_record import Fields, read_run_record

# Not the GGUF files: they are made of the weights.
FILES = ("run.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json", "config.json", "*.jinja")


@dataclass(frozen=True)
class Original:
    """A run with its run record.

    Attributes:
        name: as the user gave it.
        folder: its files.
        local: whether the folder is the run's own, so that the outcome can be added to its card.
        recipe: its recipe under today's names.
    """

    name: str
    folder: Path
    local: bool
    record: Fields
    recipe: Recipe


def find_original(name: str) -> Original:
    """The run of that name or folder, else the repository on the Hub. Raises LabError if there is none, or if it has no
    run record with a recipe that this version understands."""
    places = (PROJECT / "runs" / name, PROJECT / "adapters" / name, Path(name))
    local = next((folder for folder in places if folder.is_dir()), None)
    folder = local or download(name)
    record = read_run_record(folder)
    if not record.get("recipe"):
        raise LabError(f"{name} was not made from a recipe, so it cannot be trained again: choose another model.")
    try:
        recipe = Recipe.model_validate(record["recipe"])
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise LabError(
            f"The recipe of {name} is not valid in this version ({reason}): install the version that made it."
        ) from error
    # Where a run logs to does not change what it learns.
    return Original(name, folder, local is not None, record, recipe.model_copy(update={"report_to": []}))


def download(name: str) -> Path:
    """A repository's run record and weights. Raises LabError if it is not available."""
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise LabError(f"There is no run “{name}” here: give the name or folder of a run, or user/repo on the Hub.")
    from huggingface_hub import snapshot_download

    with translate_hub_errors(name, "run.json"):
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
