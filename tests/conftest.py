"""Models and batches that many tests share."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer

from repsim.corpus import Batch, read_corpus
from repsim.models import Model
from support.models import ARCHITECTURES, DECODERS, VOCABULARY, batch_of, make

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
torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


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


def _folder(path: Path, architecture: str, template: str | None) -> Path:
    """A tiny model and a word-level tokenizer of its own, as `save_pretrained` leaves them."""
    words = Tokenizer(WordLevel(unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = Lowercase(), Whitespace()
    special = {"pad_token": "[PAD]", "bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    trainer = WordLevelTrainer(vocab_size=VOCABULARY, special_tokens=list(special.values()), show_progress=False)
    words.train_from_iterator((text.text for text in read_corpus().texts), trainer)
    if template is not None:
        words.post_processor = TemplateProcessing(single=template, special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    make(architecture).module.save_pretrained(path)
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `repsim.models.load` reads: the Llama of `make`, and a tokenizer without special tokens added."""
    return _folder(tmp_path_factory.mktemp("models") / "tiny-llama", "llama", None)


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with BERT; its tokenizer adds [CLS] and [SEP]."""
    return _folder(tmp_path_factory.mktemp("models") / "tiny-bert", "bert", "[CLS] $A [SEP]")
