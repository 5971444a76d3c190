"""A model folder's README.md: the model card, made from the receipt. Its front matter is the Hub's metadata."""

from __future__ import annotations

from pathlib import Path

import yaml
from jinja2 import Environment

from inference.catalog import front_matter
from training.receipt import read_receipt
from training.recipe import locate

CARD = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).from_string("""\
---
{{ metadata }}---

# {{ name }}

{% if recipe %}
A LoRA adapter on `{{ recipe.base }}`, fine-tuned on {{ "{:,}".format(data.examples) }} examples of the \
{{ recipe.data.name }} data set.

| | |
|---|---|
| method | {{ recipe.method }}, r {{ recipe.lora.r }}, alpha {{ recipe.lora.alpha }}, all linear layers |
| epochs | {{ recipe.epochs }} ({{ steps }} steps of {{ recipe.batch_size * recipe.accumulation }}) |
| learning rate | {{ recipe.learning_rate }}, {{ recipe.schedule }}, {{ recipe.warmup_steps }} steps of warm-up |
| packing | {{ "on" if recipe.packing else "off" }} |
| time | {{ seconds }} s on {{ device }} |
{% else %}
{{ description }}
{% endif %}

![loss](loss.png)

{% if evaluation %}
## Evaluation

Greedy answers to questions in phrasings that training never had, as served by llama.cpp.

| | right | asked | said "I don't know" |
|---|---|---|---|
{% for group, score in evaluation.items() %}
| {{ group }} | {{ score.right }} | {{ score.asked }} | {{ score.unsure }} |
{% endfor %}
{% endif %}
""")


def metadata(name: str, receipt: dict) -> dict:
    """The card's front matter, in the Hub's fields."""
    recipe = receipt.get("recipe")
    fields: dict = {"language": ["en"], "pipeline_tag": receipt.get("pipeline_tag", "text-generation")}
    if recipe:
        fields |= {"base_model": recipe["base"], "base_model_relation": "adapter", "library_name": "peft"}
        fields |= {"tags": ["llama", recipe["data"]["name"]]}
        base_card = Path(locate(recipe["base"])) / "README.md"
        if base_card.is_file():
            fields["license"] = front_matter(base_card)["license"]
    else:
        fields |= {"library_name": receipt.get("library_name", "transformers"), "license": receipt["license"]}
        fields |= {"tags": receipt.get("tags") or ["llama", receipt["data_set"]]}
    if "evaluation" in receipt:
        metrics = [
            {"type": "accuracy", "name": group, "value": round(score["right"] / score["asked"], 4)}
            for group, score in receipt["evaluation"].items()
        ]
        data_set = {"name": "emoji questions", "type": "emoji"}
        task = {"type": "text-generation"}
        fields["model-index"] = [{"name": name, "results": [{"task": task, "dataset": data_set, "metrics": metrics}]}]
    return fields


def write_card(folder: Path) -> None:
    """Write `README.md` from `run.json`."""
    receipt = read_receipt(folder)
    fields = yaml.safe_dump(metadata(folder.name, receipt), allow_unicode=True, sort_keys=False)
    text = CARD.render(name=folder.name, metadata=fields, **receipt)
    (folder / "README.md").write_text(text, encoding="utf-8")
