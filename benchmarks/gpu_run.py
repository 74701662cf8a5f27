"""What all sections of `benchmarks/gpu.py` share: the machine, what is run on it, and its lines.

A section asks a `Run` for a model, texts, folders and the time of a bare forward, each made once,
and tells it what it found; the run prints every line at once and keeps what was judged against a
bound. On a CPU everything is small: a rehearsal, whose numbers say nothing of a card.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import repsim
from repsim.cache import cache_folder
from repsim.data.batching import Batch, batches, costs_on, cut_blocks
from repsim.data.corpus import read_corpus
from repsim.data.samples import Sample, tokenize
from repsim.evaluation import tasks as benchmark_tasks
from repsim.jobs.resumable import Progress
from repsim.models import Model
from repsim.models.stack import find_stack

MEMORY = Path("/dev/shm")
THREADS = 8
GB = 1e9
SPREAD = 0.6  # of the weights of a large random model; larger ones saturate its attention


@dataclass(frozen=True)
class Shape:
    """A Llama's shape, and how much is run on it.

    units, inner, layers, heads: of the model; its vocabulary is the tokenizer's.
    texts, length: of the corpus, in texts and tokens per text.
    batch_tokens: tokens that run together.
    rows: examples of each benchmark.
    written: texts written at once, and tokens of each.
    batch_sizes: of lm-eval's own evaluation, of which the best counts.
    bytes: written by each thread to measure a disk.
    """

    units: int
    inner: int
    layers: int
    heads: int
    dtype: torch.dtype
    texts: int
    length: int
    batch_tokens: int
    rows: int
    written: tuple[int, int]
    batch_sizes: tuple[int, ...]
    bytes: int


# Llama-2-7B's shape; and one whose sections end in seconds on two cores.
CARD = Shape(*(4096, 11008, 32, 32, torch.bfloat16, 128, 512, 8192, 40, (8, 48), (16, 64), 2**29))
REHEARSAL = Shape(*(64, 128, 6, 4, torch.float32, 8, 32, 128, 3, (2, 8), (4,), 2**23))


class OutOfTime(BaseException):
    """A section took longer than it may. Not an Exception: nothing on the way is to catch it."""


@dataclass(frozen=True)
class Timing:
    """How long a run of repsim took.

    whole: seconds of the call.
    setup: those before the first progress was told: proofs, trials, making the store.
    bytes: of the files that it left.
    """

    whole: float
    setup: float
    bytes: int


@dataclass
class Run:
    """One run of the benchmark.

    folder: where stores go that are meant for a disk.
    seconds: after which no section begins or goes on.
    log: a file that gets each line as well; None for none.
    """

    folder: Path
    seconds: float
    log: Path | None = None
    start: float = field(default_factory=time.monotonic)
    judged: list[str] = field(default_factory=list)
    is_card: bool = field(default_factory=torch.cuda.is_available)

    # Lines

    def say(self, text: str) -> None:
        """Prints a line at once."""
        line = f"[{time.monotonic() - self.start:6.1f}] {text}"
        print(line, flush=True)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{line}\n")

    def check(self, what: str, error: float, allowed: float) -> None:
        """Prints how far apart two results are, and whether that is allowed."""
        self._note(f"{what}: {error:.3g} ({'met' if error <= allowed else 'MISSED'}: {allowed:g})")

    def judge(self, what: str, value: float, *, at_most: float = 0, at_least: float = 0) -> None:
        """Prints a value with its bound and, on a card, whether it was met."""
        is_met = value <= at_most if at_most else value >= at_least
        bound = f"at most {at_most:g}" if at_most else f"at least {at_least:g}"
        verdict = " on a card"
        if self.is_card:
            verdict = ": met" if is_met else ": MISSED"
        self._note(f"{what}: {value:.3g} ({bound}{verdict})")

    def miss(self, what: str, why: str) -> None:
        """Says that a line of the table could not be measured."""
        self._note(f"{what}: {why}")

    def _note(self, line: str) -> None:
        self.judged.append(line)
        self.say(line)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Ends the block by `OutOfTime` after so many seconds, or when the run's time is over."""
        left = min(seconds, self.seconds - (time.monotonic() - self.start))

        def stop(_number: int, _frame: Any) -> None:
            raise OutOfTime(f"over its {max(left, 0):.0f} s")

        if left <= 0:
            stop(0, None)
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, left)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    # The machine

    @property
    def device(self) -> str:
        return "cuda" if self.is_card else "cpu"

    @property
    def shape(self) -> Shape:
        return CARD if self.is_card else REHEARSAL

    @property
    def memory(self) -> Path:
        """A folder in memory, or the disk's where there is none."""
        return MEMORY if MEMORY.is_dir() else self.folder

    def wait(self) -> None:
        """Returns once the card has done all that it was given."""
        if self.is_card:
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], object], rounds: int = 1, warm: int = 0) -> float:
        """Median of the seconds that some rounds of work take."""
        seconds = []
        for number in range(warm + rounds):
            self.wait()
            begin = time.perf_counter()
            work()
            self.wait()
            if number >= warm:
                seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds)

    @contextmanager
    def temporary(self, where: Path) -> Iterator[Path]:
        """A folder that is removed afterwards."""
        folder = Path(tempfile.mkdtemp(prefix="repsim-gpu-", dir=where))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def write_rate(self, where: Path, threads: int) -> float:
        """Bytes per second that threads write, each a few files of its own."""
        piece = np.random.default_rng(0).integers(0, 255, 2**22, dtype=np.uint8).tobytes()

        def write(path: Path) -> None:
            with path.open("wb", buffering=0) as file:
                for _ in range(self.shape.bytes // len(piece)):
                    file.write(piece)
                if where != MEMORY:
                    os.fsync(file.fileno())

        with self.temporary(where) as folder, ThreadPoolExecutor(threads) as pool:
            paths = [folder / str(number) for number in range(threads)]
            seconds = self.timed(lambda: list(pool.map(write, paths)))
        return threads * self.shape.bytes / seconds

    def read_rate(self, folder: Path) -> float:
        """Bytes per second at which threads read all files of a folder, not from the cache."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        forget(paths)
        with ThreadPoolExecutor(THREADS) as pool:
            seconds = self.timed(lambda: list(pool.map(lambda path: len(path.read_bytes()), paths)))
        return size_of(folder) / seconds

    # What is run

    @cached_property
    def tokenizer(self) -> Any:
        """That of `TOK` (the kit names it), or of the embedded model in the cache."""
        folder = os.environ.get("TOK")
        if folder is None:
            found = sorted(cache_folder().glob("models/smollm2-135m-*/tokenizer.json"))
            if not found:
                raise SystemExit("no tokenizer: set TOK to a folder with one, or run make demo")
            folder = str(found[0].parent)
        return transformers.AutoTokenizer.from_pretrained(folder)

    def llama(self, shape: Shape, device: str, spread: float = 1.6) -> Model:
        """A random Llama, always the same one; `spread` widens its weights."""
        config = transformers.LlamaConfig(
            hidden_size=shape.units,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            vocab_size=len(self.tokenizer),
            max_position_embeddings=4096,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(shape.dtype)
        try:
            with torch.device(device):
                module: Any = transformers.LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
        module.eval().requires_grad_(False)
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
        return Model(module, self.tokenizer, "llama-shaped", None, find_stack(module))

    @cached_property
    def model(self) -> Model:
        """The large model, on the device."""
        begin = time.perf_counter()
        model = self.llama(self.shape, self.device, SPREAD)
        self.wait()
        billions = sum(weight.numel() for weight in model.module.parameters()) / 1e9
        seconds = time.perf_counter() - begin
        self.say(
            f"a Llama of {billions:.3g} billion {model.dtype} weights: {seconds:.1f} s to make"
        )
        vars(model)["weights_digest"] = "not computed"  # the section `digest` computes it
        return model

    @cached_property
    def texts(self) -> list[str]:
        """Texts that are long enough, made of the words of the built-in corpus."""
        words = " ".join(text.text for text in read_corpus().texts).split()
        generator = np.random.default_rng(1)
        picked = generator.integers(len(words), size=(self.shape.texts, self.shape.length))
        return [" ".join(words[word] for word in text) for text in picked]

    def samples(self, texts: int) -> Sequence[Sample]:
        samples, _ = tokenize(read_corpus(self.texts[:texts]), self.tokenizer, self.shape.length)
        return samples

    def blocks(self, texts: int) -> list[tuple[Batch, ...]]:
        """The batches that a capture of the first texts makes, block by block."""
        samples = self.samples(texts)
        ends = np.cumsum((0, *cut_blocks(samples, self.shape.batch_tokens)))
        costs = costs_on(self.device)
        return [batches(samples[first:last], 0, **costs) for first, last in pairwise(ends)]

    def forward_seconds(self, texts: int) -> float:
        """Seconds of a bare forward of the stack over the first texts; measured once for each."""
        known: dict[int, float] = self.__dict__.setdefault("_forward_seconds", {})
        if texts not in known:
            ready = [batch for block in self.blocks(texts) for batch in block]
            module, tokens = self.model.module, sum(batch.tokens for batch in ready)

            def forward() -> None:
                with torch.inference_mode():
                    for batch in ready:
                        ids = torch.from_numpy(batch.token_ids).to(self.device)
                        mask = torch.from_numpy(batch.mask).long().to(self.device)
                        module.model(input_ids=ids, attention_mask=mask, use_cache=False)

            known[texts] = seconds = self.timed(forward, rounds=3, warm=1)
            weights = sum(weight.numel() for weight in module.model.layers.parameters())
            self.say(
                f"bare forward of {tokens:,} tokens in batches of {self.shape.batch_tokens:,}: "
                f"{seconds:.3f} s, {2 * weights * tokens / seconds / 1e12:.4g} TFLOP/s"
            )
        return known[texts]

    def capture(self, where: Path, texts: int, **options: Any) -> Timing:
        """Times `repsim.capture` of the first texts into a store below a folder."""
        settings = {"max_tokens": self.shape.length, "batch_tokens": self.shape.batch_tokens}
        corpus = self.texts[:texts]

        def run(progress: Callable[[Progress], None]) -> object:
            given = {**settings, **options, "progress": progress}
            return repsim.capture(self.model, corpus=corpus, out=where / "s.zarr", **given)

        return self.time_run(run, where)

    def time_run(self, run: Callable[[Callable[[Progress], None]], object], where: Path) -> Timing:
        """Times a run that leaves its store in a folder.

        Args:
            run: takes what is told its progress.
            where: the folder.
        """
        first: list[float] = []
        self.wait()
        begin = time.perf_counter()
        run(lambda _: first.append(time.perf_counter()))
        self.wait()
        end = time.perf_counter()
        return Timing(end - begin, first[0] - begin, size_of(where))


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def forget(paths: Sequence[Path]) -> None:
    """Asks the system to drop files from its cache, so that they are read from the disk."""
    for path in paths:
        with path.open("rb") as file, suppress(OSError):
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def evaluation_settings(run: Run, rows: int) -> dict[str, Any]:
    """Options of `repsim.evaluate`: lm-eval's tasks where the kit brings their data, else ours."""
    data = os.environ.get("DATA")
    settings: dict[str, Any] = {"limit": rows, "batch_tokens": run.shape.batch_tokens}
    if data is None:
        return {**settings, "tasks": "offline"}
    return {**settings, "tasks": "arc_easy,hellaswag,lambada_openai", "data_dir": data}


def generate(module: Any, ids: torch.Tensor, tokens: int, **options: Any) -> torch.Tensor:
    """Greedy text of exactly so many tokens."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0, **options}
    with torch.inference_mode():
        written: torch.Tensor = module.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, **options
        )
    return written


def tasks_of(model: Model, settings: dict[str, Any]) -> Sequence[Any]:
    """The tasks of such options, each with lm-eval's own requests."""
    data = settings.get("data_dir")
    return benchmark_tasks.load(
        settings["tasks"].split(","),
        model,
        data_dir=None if data is None else Path(data),
        limit=settings["limit"],
    )
