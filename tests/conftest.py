"""Models and batches that many tests share."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Tiny tensors: more threads only wait for each other, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from repsim.data.batching import Batch
from repsim.models import Model
from support.models import ARCHITECTURES, DECODERS, batch_of, make, save_folder

# What a user's terminal or CI sets must not decide what the command prints.
for name in (
    "FORCE_COLOR",
    "CLICOLOR_FORCE",
    "PY_COLORS",
    "NO_COLOR",
    "GITHUB_ACTIONS",
    "TTY_COMPATIBLE",
    "TERMINAL_WIDTH",
    "LINES",
    "REPSIM_DEBUG",
):
    os.environ.pop(name, None)
os.environ["COLUMNS"] = "100"
torch.set_num_threads(1)


@pytest.fixture(scope="session", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Model:
    return make(request.param)


@pytest.fixture(scope="session", params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> Model:
    return make(request.param)


@pytest.fixture(scope="session")
def llama() -> Model:
    return make("llama")


@pytest.fixture(scope="session")
def batch() -> Batch:
    return batch_of((9, 7, 4))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `repsim.models.load` reads: the Llama of `make`, and a tokenizer without
    special tokens added.
    """
    return save_folder(tmp_path_factory.mktemp("models") / "tiny-llama", "llama", None)


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with BERT; its tokenizer adds [CLS] and [SEP]."""
    return save_folder(tmp_path_factory.mktemp("models") / "tiny-bert", "bert", "[CLS] $A [SEP]")
