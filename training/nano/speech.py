"""Makes the embedded speech model: Whisper's architecture in small, trained from scratch on espeak-ng's voices.

`python -m training.nano.speech` writes `adapters/nano-speech`, in minutes on a GPU or hours on 2 cores. It needs
espeak-ng. The shipped model was trained in two stages, as its run.json says: `--steps 6965 --utterances 32000
--batch-size 48`, then `--start adapters/nano-speech --steps 5612 --utterances 22000 --batch-size 96 --peak 1.2e-3
--seed 1`.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file
from torch import nn
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from inference.speech import SAMPLE_RATE
from training.nano.speech_batches import Batches
from training.nano.speech_model import SpeechModel, Vocabulary, compute_losses, load, save
from training.nano.utterances import draw_utterance, synthesize_all
from training.plots import draw_loss
from training.publish.card import write_card
from training.run_record import device_name, read_run_record, write_run_record

DESCRIPTION = (
    "A Whisper of {parameters:.1f} million parameters, trained from scratch with `python -m training.nano.speech` on "
    "{hours:.0f} hours of espeak-ng's voices: short English questions about emoji. It knows no human voice. It makes "
    "the microphone work if no other speech model is available."
)
Losses = list[tuple[int, float]]  # steps and losses in nats per token


def train(model: SpeechModel, batches: Batches, steps: int, peak: float) -> Losses:
    """Train with AdamW, a cosine schedule from the learning rate `peak`, and bfloat16 autocast.

    Returns the decoder's loss at every 50th step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 300, steps, min_lr_rate=0.01)
    device = next(model.parameters()).device.type
    endless = iter(batches)
    losses: Losses = []

    def newest_loss(_: object) -> str | None:
        return f"loss {losses[-1][1]:.3f}" if losses else None

    with typer.progressbar(range(steps), label="speech", item_show_func=newest_loss) as bar:
        for step in bar:
            mel, ids, texts = next(endless)
            with torch.autocast(device, torch.bfloat16):
                cross_entropy, ctc = compute_losses(model, mel, ids, texts)
            (cross_entropy + 0.5 * ctc).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            model.hold_bias()
            if step % 50 == 0 or step == steps - 1:
                losses.append((step, round(cross_entropy.item(), 4)))
    return losses


def main(
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 4600,
    utterances: Annotated[int, typer.Option(help="Utterances to synthesize.")] = 24_000,
    batch_size: Annotated[int, typer.Option(help="Utterances per step.")] = 32,
    peak: Annotated[float, typer.Option(help="The highest learning rate.")] = 1.5e-3,
    seed: Annotated[int, typer.Option(help="The seed of texts and voices.")] = 0,
    start: Annotated[Path | None, typer.Option(help="A model folder to continue from.")] = None,
    out: Annotated[Path, typer.Option(help="The model folder to write.")] = Path("adapters/nano-speech"),
) -> None:
    """Synthesize utterances, train the embedded speech model and write its model folder."""
    torch.manual_seed(seed)
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans for 0.1 s at each new shape
    rng = random.Random(seed)
    drawn = [draw_utterance(rng) for _ in range(utterances)]
    sounds = synthesize_all(drawn)
    texts = [utterance.text for utterance in drawn]
    weights = load_file(start / "model.safetensors") if start else {}
    vocabulary = Vocabulary(texts, weights["tokens"].tolist() if start else ())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SpeechModel(len(vocabulary.tokens))
    if start:
        load(weights, model, vocabulary)
    model.to(device)
    started = time.perf_counter()
    losses = train(model, Batches(sounds, texts, vocabulary, batch_size, device), steps, peak)
    stage = {
        "steps": steps, "batch_size": batch_size, "learning_rate": peak, "utterances": utterances,
        "hours": round(sum(sound.size for sound in sounds) / SAMPLE_RATE / 3600, 1), "seed": seed,
        "seconds": round(time.perf_counter() - started, 1), "losses": losses, "device": device_name(),
    }  # fmt: skip
    save(model, vocabulary, out / "model.safetensors")
    write_description(model, [*(read_run_record(start)["stages"] if start else ()), stage], out)


def write_description(model: SpeechModel, stages: list[dict[str, Any]], out: Path) -> None:
    """Write the run record, the loss curve and the model card."""
    parameters = sum(weight.numel() for weight in model.whisper.parameters())
    hours = sum(stage["hours"] for stage in stages)
    run_record = {
        "description": DESCRIPTION.format(parameters=parameters / 1e6, hours=hours), "license": "mit",
        "pipeline_tag": "automatic-speech-recognition", "library_name": "whisper", "tags": ["whisper", "espeak-ng"],
        "parameters": parameters, "torch": torch.__version__, "stages": stages,
    }  # fmt: skip
    write_run_record(out, run_record)
    draw_loss({f"nano-speech, stage {i}": stage["losses"] for i, stage in enumerate(stages, 1)}, out / "loss.png")
    write_card(out)


if __name__ == "__main__":
    typer.run(main)
