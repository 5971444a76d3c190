"""The PyTorch engine: a transformers model on a GPU (or the CPU), with all its LoRA adapters on it at once.

`ModelFiles.base` is a folder with config.json, model.safetensors and the tokenizer's files (or one of those files),
`ModelFiles.adapter` a folder as PEFT writes it. Only safetensors are opened, and no code that comes with a model.

Questions are answered in one batch, each in a row of a static KV cache, whichever adapter of the base it is for; they
join and leave between two tokens. On a GPU the step of one token is compiled and replayed as a CUDA graph: the first
answer of a new batch size waits for that, tens of seconds. How rows with different adapters share a step is left to
`rows`, what an adapter's folder may hold to `adapters`.

A token's scores depend on the batch in their last bits, so a seed gives the same answer again only in like company.
ZeroGPU lends its GPU to one function call and not to a thread: see `zerogpu`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers.decoders import DecodeStream
from torch.nn.attention import sdpa_kernel
from torch.utils._triton import has_triton
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from inference.engines import AnswerScore, Message, ModelFiles
from inference.engines.chat_template.template import ChatTemplate
from inference.engines.pytorch.adapters import read_adapter
from inference.engines.pytorch.rows import ATTENTION, FUSED, SHARE_OF_MEMORY, CachePass, MixedLora, RowCache
from inference.engines.scheduler import Finished, Request, Worker
from inference.errors import LabError

MAX_CONTEXT = 4096  # tokens; as in the llama.cpp engine
PROMPT_CHUNK = 512  # tokens of a prompt between two looks at whether it is still wanted
SCORED_CHUNK = 64  # tokens whose scores over the whole vocabulary are in memory at once: 33 MB for 128,000
TOP_K = 40  # as in the llama.cpp engine
ROWS = {"cuda": 32, "cpu": 8}  # questions answered at once
BATCHES = (1, 2, 4, 8, 16, 32)  # the shapes that are compiled: rows,
WINDOWS = (512, 1024, 2048, 4096)  # and how far back the attention looks
COLUMNS = 64  # of a layer's adapters to begin with: four of rank 16. Doubled when full, and compiled anew.
MOST_COLUMNS = 1024  # each costs every token a little; beyond this, all adapters are taken off and come back as asked


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the machine computes in it, else float16 on a GPU and float32 on a CPU."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def load_model(folder: Path, config: PretrainedConfig, device: torch.device) -> PreTrainedModel:
    """The base in 16 bits, or in 4 (NF4) on a GPU that has no room for them; float32 on a CPU without bfloat16."""
    dtype, quantization = compute_dtype(device), None
    if device.type == "cuda":
        with torch.device("meta"):
            size = 2 * AutoModelForCausalLM.from_config(config).num_parameters()
        if size > SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]:
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        quantization_config=quantization,
        device_map={"": device},
        attn_implementation=ATTENTION,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    # transformers would fill what is missing with random numbers.
    wrong = [*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]]
    if wrong:
        raise LabError(f"{folder.name}'s weights don't match its config.json ({wrong[0]}): fetch or export it again.")
    return model.eval().requires_grad_(False)


@contextmanager
def translate_base_errors(folder: Path) -> Iterator[None]:
    """What goes wrong with a base's files, in a sentence."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise LabError(f"{folder.name} needs more memory than there is: choose a smaller model.") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise LabError(f"{folder.name} can't be loaded ({reason}): fetch or export it again.") from error


@dataclass(eq=False)
class RowRequest(Request):
    """A question, and where it stands: its row of the cache and the newest token's position."""

    row: int = -1
    position: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.sampling.seed)
        self.decoder = DecodeStream(skip_special_tokens=True)


def pick(scores: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """Which of the best `scores` (rows, k; best first) is taken, (rows,) int64: top-p, then temperature, in llama.cpp's
    order; the first where `temperature` is 0. All others (rows,); `draw` in [0, 1) decides."""
    likely = scores.softmax(-1)
    kept = likely.cumsum(-1) - likely < top_p[:, None]
    kept[:, 0] = True
    warmed = ((scores - scores[:, :1]) / temperature[:, None].clamp(min=1e-6)).exp() * kept
    reached = warmed.cumsum(-1)
    index = (reached <= draw[:, None] * reached[:, -1:]).sum(-1).clamp(max=scores.shape[-1] - 1)
    return torch.where(temperature > 0, index, 0)


@dataclass(frozen=True)
class Flight:
    """A pass of one token that the device was given: who gets its tokens, and where they will lie."""

    requests: list[RowRequest | None]
    tokens: torch.Tensor
    landed: torch.cuda.Event | None


class LoadedBase:
    """A base model, its KV cache, the adapters that have been put on it, and the questions it is answering."""

    def __init__(self, folder: Path, device: torch.device, most_rows: int) -> None:
        self.folder = folder
        if not (folder / "config.json").is_file():
            raise LabError(f"{folder.name} has no config.json: name a folder with a transformers model.")
        logging.disable_progress_bar()
        with translate_base_errors(folder):
            self.config = AutoConfig.from_pretrained(folder, local_files_only=True)
            if set(getattr(self.config, "layer_types", None) or ()) - {"full_attention"}:
                raise LabError(f"{folder.name} has layers without full attention: use the llama.cpp engine for it.")
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.backend = self.tokenizer.backend_tokenizer
            self.model = load_model(folder, self.config, device)
            self.n_ctx = min(self.config.max_position_embeddings, MAX_CONTEXT)
            like = torch.empty(0, dtype=self.model.dtype, device=device)
            self.cache = RowCache(self.config, most_rows, self.n_ctx, like)
        self.device = device
        rows = self.cache.size
        self.rows: list[RowRequest | None] = [None] * rows
        self.starts: dict[Path, tuple[int, int]] = {}  # an adapter's first column and the one after its last
        self.mine = like.new_zeros(rows, COLUMNS)
        self.turned_to: list[Path | None] = []
        self.row_numbers = torch.arange(rows, device=device)
        # Of each row, on the device: the newest token and its position, how the next one is drawn.
        self.tokens, self.positions = torch.zeros(2, rows, 1, dtype=torch.long, device=device)
        self.temperature, self.top_p, self.draw = torch.zeros(3, rows, device=device)
        self.looks_ahead = device.type == "cuda"
        self.flight: Flight | None = None
        self.steps = 0  # one-token passes so far
        self.compiled = device.type == "cuda" and has_triton()
        self.one_token = (
            torch.compile(self.forward, mode="reduce-overhead", dynamic=False, recompile_limit=64)
            if self.compiled
            else self.forward
        )
        self.template = self._chat_template()
        ends = self.model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self.ends = {ends} if isinstance(ends, int) else set(ends or ())

    def _chat_template(self) -> ChatTemplate:
        source = self.tokenizer.chat_template
        if not isinstance(source, str):
            raise LabError(f"{self.folder.name} has no chat template: use an instruct model.")
        special = {t.content: i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special}
        # Asked before nothing is special any more: whether the model wants a BOS.
        bos = self.tokenizer.bos_token_id
        self.bos = bos if bos is not None and self.tokenizer.encode("a")[:1] == [bos] else None
        self.backend.encode_special_tokens = True  # in text, a special token's spelling is text
        return ChatTemplate(
            source, special, self.tokenize, self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        )

    def tokenize(self, text: str) -> list[int]:
        """The ids of plain text: nothing is added, nothing in it is special."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's ids, with exactly one BOS where the model wants one."""
        tokens = self.template.encode(messages)
        while self.bos is not None and tokens[:1] == [self.bos]:
            tokens = tokens[1:]
        return tokens if self.bos is None else [self.bos, *tokens]

    @property
    def answering(self) -> list[RowRequest]:
        """The questions that have a row, in the rows' order."""
        return [request for request in self.rows if request]

    @property
    def mixed(self) -> list[MixedLora]:
        """The layers that an adapter was ever put on."""
        return [module for module in self.model.modules() if isinstance(module, MixedLora)]

    def put_on(self, adapter: Path) -> None:
        """Add an adapter to the base; nothing is changed where it is refused."""
        layers = read_adapter(adapter, self.config)
        start = max((end for _, end in self.starts.values()), default=0)
        rank = max(len(a) for a, _ in layers.values())
        if start + rank > MOST_COLUMNS and not any(request.files.adapter for request in self.answering):
            start = self.take_off()
        columns = self.mine.shape[1]
        while columns < start + rank:
            columns *= 2
        if columns > self.mine.shape[1]:
            self.mine, self.turned_to = self.mine.new_zeros(len(self.rows), columns), []
            for layer in self.mixed:
                layer.grow(self.mine)
        for name, (a, b) in layers.items():
            layer = self.model.get_submodule(name)
            if not isinstance(layer, MixedLora):
                layer = MixedLora(layer, self.mine)
                self.model.set_submodule(name, layer)
            layer.put(start, a, b)
        self.starts[adapter] = start, start + rank

    def take_off(self) -> int:
        """Forget all adapters, which are read again when they are asked for. Returns the first free column."""
        for layer in self.mixed:
            layer.b.zero_()
        self.starts.clear()
        self.turned_to = []
        return 0

    def turn_to(self, adapters: list[Path | None]) -> None:
        """The next pass has so many rows, each with its own adapter or none."""
        if adapters == self.turned_to:
            return
        self.turned_to = adapters
        mask = torch.zeros(len(adapters), self.mine.shape[1], dtype=self.mine.dtype)
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                mask[row, slice(*self.starts[adapter])] = 1
        self.mine[: len(adapters)].copy_(mask)

    def logits(
        self, tokens: torch.Tensor, positions: torch.Tensor, first: int, window: int, keep: int = 1
    ) -> torch.Tensor:
        """The scores of what follows each row's last `keep` tokens, float32 (rows, keep, vocabulary). `tokens` and
        `positions` (rows, tokens) belong to the rows from `first` on."""
        rows = self.row_numbers[first : first + len(tokens)]
        sees = torch.arange(window, device=self.device) <= positions[:, None, :, None]
        out = self.model(
            input_ids=tokens,
            attention_mask=sees,
            position_ids=positions,
            past_key_values=CachePass(self.cache, first, rows, positions, window),
            use_cache=True,
            logits_to_keep=keep,
        )
        return out.logits.float()

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, first: int, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The token after each row's last one, and its position: (rows, 1) int64 both."""
        logits = self.logits(tokens, positions, first, window)[:, -1]
        scores, ids = logits.topk(min(TOP_K, logits.shape[-1]))
        own = slice(first, first + len(tokens))
        chosen = pick(scores, self.temperature[own], self.top_p[own], self.draw[own])
        # A row that nobody has any more goes on until its next question, but never past its end.
        return ids.gather(-1, chosen[:, None]), (positions[:, -1:] + 1).clamp(max=self.n_ctx - 1)

    def begin(self, request: RowRequest) -> None:
        """Give a question a row, read its prompt and choose the first token of the answer; or score its answer."""
        request.encode(self.encode, self.ends.__contains__, self.n_ctx)
        request.row = self.rows.index(None)
        self.rows[request.row] = request
        # Of an answer that is scored, what comes before the last token of the prompt is of no interest, nor what
        # follows its own last token.
        before = request.tokens if request.answer is None else request.tokens[: request.scored_from - 1]
        own = request.row
        self.temperature[own], self.top_p[own] = request.sampling.temperature, request.sampling.top_p
        self.draw[own] = request.random.random()
        for start in range(0, len(before), PROMPT_CHUNK):
            if request.unwanted.is_set():
                return self.end(request, Finished("cancelled"))
            part = self.part_of(request, start, min(start + PROMPT_CHUNK, len(before)))
            with sdpa_kernel(FUSED):
                self.tokens[own], self.positions[own] = (of_row[0] for of_row in self.forward(*part))
        if request.answer is not None:
            return self.score(request)
        request.position = len(request.tokens) - 1
        self.take(request, self.tokens[own].item())

    def part_of(self, request: RowRequest, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Tokens of a question as a pass takes them."""
        tokens = torch.tensor([request.tokens[start:end]], device=self.device)
        self.turn_to([request.files.adapter])
        return tokens, torch.arange(start, end, device=self.device)[None], request.row, end

    def score(self, request: RowRequest) -> None:
        """How likely each token of the answer is after all before it."""
        last = len(request.tokens) - 1
        for start in range(request.scored_from - 1, last, SCORED_CHUNK):
            if request.unwanted.is_set():
                return self.end(request, Finished("cancelled"))
            end = min(start + SCORED_CHUNK, last)
            logits = self.logits(*self.part_of(request, start, end), keep=end - start)[0]
            tokens = torch.tensor(request.tokens[start + 1 : end + 1], device=self.device)
            likelihoods = logits.log_softmax(-1).gather(-1, tokens[:, None])
            request.add(likelihoods.double().sum().item(), bool((logits.argmax(-1) == tokens).all()))
        self.end(request, request.scored())

    def step(self) -> None:
        """One more token for each question that is being answered. A GPU is given the next pass before the tokens of
        the one before are looked at, so that it need not wait for that: whoever ends has one pass too many."""
        for request in self.answering:
            if request.unwanted.is_set():
                self.end(request, Finished("cancelled"))
        before, self.flight = self.flight, self.launch()
        if not self.looks_ahead:
            before, self.flight = self.flight, None
        if before:
            self.land(before)
        if not self.answering:
            self.flight = None

    def launch(self) -> Flight | None:
        """Give the device a pass of one token, where somebody wants one more than are under way."""
        ahead = self.flight.requests if self.flight else []
        wanting = [r for r in self.answering if not self.full(r, r in ahead)]
        if not wanting:
            return None
        batch, window = wanting[-1].row + 1, max(r.position + (r in ahead) for r in wanting) + 1
        if self.compiled:
            batch = min((b for b in BATCHES if batch <= b <= len(self.rows)), default=len(self.rows))
            window = min((w for w in WINDOWS if window <= w <= self.n_ctx), default=self.n_ctx)
        rows = [request if request in wanting else None for request in self.rows[:batch]]
        self.turn_to([request.files.adapter if request else None for request in rows])
        if any(request.sampling.temperature > 0 for request in wanting):
            draws = torch.tensor([request.random.random() if request else 0.0 for request in rows])
            self.draw[:batch].copy_(draws)
        found = self.one_token(self.tokens[:batch], self.positions[:batch], 0, window)
        torch._foreach_copy_([self.tokens[:batch], self.positions[:batch]], list(found))
        self.steps += 1
        if self.device.type == "cpu":
            return Flight(rows, self.tokens[:batch, 0].clone(), None)
        landed, tokens = torch.cuda.Event(), torch.empty(batch, dtype=torch.long, pin_memory=True)
        tokens.copy_(self.tokens[:batch, 0], non_blocking=True)
        landed.record()
        return Flight(rows, tokens, landed)

    def full(self, request: RowRequest, ahead: int) -> bool:
        """Whether the answer has all the tokens that it may have, `ahead` of them under way."""
        return request.count + ahead >= request.sampling.max_tokens or request.position + ahead >= self.n_ctx

    def land(self, flight: Flight) -> None:
        """Give each question its token of a pass."""
        if flight.landed:
            flight.landed.synchronize()
        for request, token in zip(flight.requests, flight.tokens.tolist(), strict=True):
            if request and self.rows[request.row] is request:
                self.take(request, token)

    def take(self, request: RowRequest, token: int) -> None:
        """Tell a question its next token, and end the answer where it ends."""
        if request.sampling.max_tokens <= request.count:
            return self.end(request, Finished("length"))
        if token in self.ends:
            return self.end(request, Finished("stop"))
        request.position, request.count = request.position + 1, request.count + 1
        piece = request.decoder.step(self.backend, token) or ""
        request.events.put((piece.encode(), time.perf_counter()))
        if self.full(request, 0):
            self.end(request, Finished("length"))

    def end(self, request: RowRequest, outcome: Finished | AnswerScore | BaseException) -> None:
        """Tell a question how it ended and free its row."""
        request.events.put(outcome)
        if request.row >= 0 and self.rows[request.row] is request:
            self.rows[request.row] = None


def folder_of(path: Path) -> Path:
    """The model's folder, of which any file may be named."""
    return path.parent if path.is_file() else path


class Engine(Worker):
    """Runs transformers models. `device` None takes the GPU where there is one."""

    request_type = RowRequest

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self._device = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
        self._base: LoadedBase | None = None

    @classmethod
    def from_environment(cls) -> Engine:
        """See `inference.engines.Engine`: there is nothing to set."""
        return cls()

    def in_memory(self, files: ModelFiles) -> bool:
        """Whether answering would load nothing."""
        base = self._base
        if base is None or base.folder != folder_of(files.base):
            return False
        return files.adapter is None or files.adapter in base.starts

    @torch.no_grad()
    def _serve(self) -> None:
        super()._serve()

    def _loaded(self) -> list[LoadedBase]:
        return [self._base] if self._base else []

    def _begin(self, request: RowRequest) -> bool:
        folder, adapter = folder_of(request.files.base), request.files.adapter
        if self._answering() and (self._base.folder != folder or None not in self._base.rows):
            return False
        if not self.in_memory(request.files):
            request.events.put("loading")
        if self._base is None or self._base.folder != folder:
            self._drop()  # before the next one is loaded: two don't fit on a small machine
            self._base = LoadedBase(folder, self._device, ROWS[self._device.type])
        if adapter is not None and adapter not in self._base.starts:
            self._base.put_on(adapter)
        request.events.put("thinking")
        self._base.begin(request)
        return True

    def _end(self, request: RowRequest, outcome: Finished | AnswerScore | BaseException) -> None:
        if isinstance(outcome, torch.OutOfMemoryError):
            outcome = LabError("The GPU has no memory left for this answer: ask again in a moment.")
        if self._base:
            self._base.end(request, outcome)
        else:
            request.events.put(outcome)

    def _drop(self) -> None:
        self._base = None
        if self._device.type == "cuda":
            torch.compiler.reset()  # the graphs hold the cache
            torch.cuda.empty_cache()
