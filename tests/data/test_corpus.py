"""Texts, their keys, tokens and batches; the data-set library's loading is played."""

import json
from itertools import combinations, pairwise

import datasets
import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from repsim.data import samples as samples_module
from repsim.data.batching import Batch, Company, batches, cut_blocks
from repsim.data.corpus import Corpus, Text, read_corpus
from repsim.data.samples import Sample, TokenRule, corpus_digest, tokenize
from repsim.errors import RepsimError


def texts_of(corpus: Corpus) -> list[str]:
    return [text.text for text in corpus.texts]


def write_jsonl(path, records, **options):
    path.write_text("".join(json.dumps(record, **options) + "\n" for record in records), "utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path):
    """Writes bytes or text to a file of this name and gives its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture
def hub(monkeypatch):
    """A hub with `glue/sst2`, `org/name` and `org/name/config`; records what was asked for."""
    rows = datasets.Dataset.from_dict(
        {"sentence": ["one", "", "two"], "label": [0, 1, 0], "gap": ["one", None, "two"]}
    )
    there = {("glue", "sst2"), ("org/name", None), ("org/name", "config")}
    asked = []

    def load_dataset(repository, configuration=None, *, split):
        asked.append((repository, configuration, split))
        if (repository, configuration) not in there:
            raise datasets.exceptions.DatasetNotFoundError(
                f"Dataset '{repository}'\ndoesn't exist on the Hub"
            )
        if split != "train":
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train'].")
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.fixture(scope="module")
def words(tiny_folder):
    return transformers.AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def marked_words(tiny_encoder_folder):
    """Adds [CLS], id 1, and [SEP], id 2."""
    return transformers.AutoTokenizer.from_pretrained(tiny_encoder_folder)


def corpus_of(*texts: str) -> Corpus:
    return Corpus("own", tuple(Text(f"key{row}", text) for row, text in enumerate(texts)))


def sample_of(key: str, *ids: int) -> Sample:
    return Sample(key, np.array(ids, np.int32))


# Values worked out by hand


def test_the_built_in_passages():
    corpus = read_corpus()
    assert corpus.name == "builtin"
    assert corpus.notes == ()
    assert len(corpus.texts) >= 64
    assert all(40 <= len(text.split()) <= 200 for text in texts_of(corpus))
    assert (
        len({text.key for text in corpus.texts}) == len(set(texts_of(corpus))) == len(corpus.texts)
    )
    assert read_corpus() == corpus
    assert read_corpus(limit=3).texts == corpus.texts[:3]


def test_a_text_file_has_a_text_a_line(file):
    path = file("my.texts.txt", "one\n\n  two \none\n \nthree\none\n")
    corpus = read_corpus(path)
    assert corpus.name == "my.texts"
    assert texts_of(corpus) == ["one", "two", "three"]
    assert corpus.notes == ("2 empty texts left out", "2 repeated texts left out")
    assert corpus.texts[0].key == "7692c3ad3540bb80"  # sha256 of `one`
    assert read_corpus(path, limit=2).texts == corpus.texts[:2]
    assert read_corpus(path, limit=2).notes == ("1 empty texts left out",)


def test_a_jsonl_file_has_a_text_a_field(tmp_path):
    path = write_jsonl(
        tmp_path / "c.jsonl", [{"text": "one", "body": "eins"}, {"text": " ", "body": "zwei\ndrei"}]
    )
    assert texts_of(read_corpus(path)) == ["one"]
    assert read_corpus(path).notes == ("1 empty texts left out",)
    assert texts_of(read_corpus(path, field="body")) == ["eins", "zwei\ndrei"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.txt", b"\xef\xbb\xbfone\ntwo"),
        ("c.txt", b"one\r\ntwo\r\n"),
        ("c.txt", b"one\rtwo\r"),
        ("c.jsonl", b'\xef\xbb\xbf{"text": "one"}\n{"text": "two"}'),
        ("c.jsonl", b'{"text": "one"}\r\n\r\n{"text": "two"}\r\n'),
    ],
)
def test_byte_order_marks_and_line_ends_are_no_text(file, name, content):
    assert texts_of(read_corpus(file(name, content))) == ["one", "two"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_ends_end_a_line(tmp_path, file, separator):
    text = f"one{separator}two"
    assert texts_of(read_corpus(file("c.txt", text + "\n"))) == [text]
    path = write_jsonl(tmp_path / "c.jsonl", [{"text": text}], ensure_ascii=False)
    assert texts_of(read_corpus(path)) == [text]


@pytest.mark.parametrize(
    ("source", "name", "asked"),
    [
        (
            "hf:glue/sst2:train:sentence",
            "glue-sst2-train",
            [("glue/sst2", None, "train"), ("glue", "sst2", "train")],
        ),
        ("hf:org/name:train:sentence", "org-name-train", [("org/name", None, "train")]),
        (
            "hf:org/name/config:train:sentence",
            "org-name-config-train",
            [("org/name", "config", "train")],
        ),
    ],
)
def test_a_data_set_of_the_hub(hub, source, name, asked):
    corpus = read_corpus(source)
    assert (corpus.name, texts_of(corpus)) == (name, ["one", "two"])
    assert corpus.notes == ("1 empty texts left out",)
    assert hub == asked
    assert texts_of(read_corpus(source, limit=1)) == ["one"]


def test_a_missing_value_of_the_hub_is_no_text(hub):
    corpus = read_corpus("hf:org/name:train:gap")
    assert (texts_of(corpus), corpus.notes) == (["one", "two"], ("1 empty texts left out",))


def test_samples_are_longest_first(words):
    samples, notes = tokenize(corpus_of("the of", "the", "", "of and the", "and"), words, 9)
    assert [sample.key for sample in samples] == ["key3", "key0", "key1", "key4"]
    assert [words.decode(sample.token_ids) for sample in samples] == [
        "of and the",
        "the of",
        "the",
        "and",
    ]
    assert notes == ("1 texts without a token left out",)
    assert all(sample.token_ids.dtype == np.int32 for sample in samples)


def test_special_tokens_stay_when_a_sample_is_cut(marked_words):
    samples, notes = tokenize(
        corpus_of("the of", "the of and the of and", "the the the the"), marked_words, 5
    )
    the, of, end = marked_words.convert_tokens_to_ids(["the", "of", "and"])
    assert [sample.token_ids.tolist() for sample in samples] == [
        [1, the, of, end, 2],
        [1, the, the, the, 2],
        [1, the, of, 2],
    ]
    assert notes == ("2 samples cut to 5 tokens",)
    assert tokenize(corpus_of("the of"), marked_words, 4)[1] == ()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_first_tokens_are_kept_whatever_side_the_tokenizer_cuts(tiny_encoder_folder, side):
    words = transformers.AutoTokenizer.from_pretrained(
        tiny_encoder_folder, truncation_side=side, padding_side=side
    )
    (sample,), _ = tokenize(corpus_of("the of and in"), words, 4)
    assert words.decode(sample.token_ids) == "[CLS] the of [SEP]"
    assert words.truncation_side == side


def test_a_tokenizer_that_cuts_and_pads_by_itself_does_not_here(tiny_encoder_folder):
    words = transformers.AutoTokenizer.from_pretrained(tiny_encoder_folder)
    words.backend_tokenizer.enable_truncation(3, direction="left")
    words.backend_tokenizer.enable_padding(length=12)
    samples, notes = tokenize(corpus_of("the of and in", "the"), words, 9)
    assert [words.decode(sample.token_ids) for sample in samples] == [
        "[CLS] the of and in [SEP]",
        "[CLS] the [SEP]",
    ]
    assert notes == ()


def test_blocks_by_hand():
    samples = [sample_of("a", 5, 6, 7), sample_of("b", 8, 9), sample_of("c", 4)]
    assert cut_blocks(samples, 5) == (2, 1)
    assert cut_blocks(samples, 1) == (1, 1, 1)  # at least one sample
    assert cut_blocks(samples, 6) == (3,)
    assert cut_blocks([], 9) == ()


def test_batches_by_hand():
    samples = [sample_of("a", 5, 6, 7), sample_of("b", 8, 9), sample_of("c", 4)]
    (together,) = batches(samples, 0, overhead=10, waste=1)
    assert together.token_ids.tolist() == [[5, 6, 7], [8, 9, 0], [4, 0, 0]]
    assert together.mask.tolist() == [[True, True, True], [True, True, False], [True, False, False]]
    assert together.tokens == 6
    # apart 6 positions and three forwards, b with c 3 + 4 and two, all of them 9 and one
    assert [batch.tokens for batch in batches(samples, 0, overhead=1.6, waste=1)] == [3, 3]
    assert [batch.tokens for batch in batches(samples, 0, overhead=0.5, waste=1)] == [3, 2, 1]
    assert [batch.tokens for batch in batches(samples, 0, overhead=10, waste=0.02)] == [3, 2, 1]


def test_batches_of_one_length_by_hand():
    samples = [
        sample_of(key, *range(length))
        for key, length in zip("abcdef", (3, 3, 2, 4, 4, 4), strict=True)
    ]
    costs = {"overhead": 1000, "waste": 1}
    assert [batch.mask.shape for batch in batches(samples, 0, **costs)] == [(6, 4)]
    equal = batches(samples, 0, **costs, company=Company.EQUAL)
    assert [batch.mask.shape for batch in equal] == [(2, 3), (1, 2), (3, 4)]
    assert all(batch.mask.all() for batch in equal)
    alone = batches(samples, 0, **costs, company=Company.NONE)
    assert [batch.token_ids.tolist() for batch in alone] == [
        [sample.token_ids.tolist()] for sample in samples
    ]


@pytest.mark.parametrize(
    ("rule", "length", "positions"),
    [
        ("all", 3, [0, 1, 2]),
        ("last", 3, [2]),
        ("mean", 3, [-1]),
        ("every:2", 5, [0, 2, 4]),
        ("every:7", 5, [0]),
    ],
)
def test_positions_that_a_rule_keeps(rule, length, positions):
    assert TokenRule(rule).positions(length).tolist() == positions


@pytest.mark.parametrize("rule", ["first", "every", "every:0", "every:-1", "last "])
def test_rules_that_there_are_not(rule):
    with pytest.raises(RepsimError, match=r"choose all, last, mean or every:N$"):
        TokenRule(rule)


# Long texts


class Counting:
    """A tokenizer that notes how many characters it is given at once."""

    def __init__(self, tokenizer):
        self.tokenizer, self.given = tokenizer, []

    def __call__(self, texts, **options):
        self.given.append(sum(map(len, [texts] if isinstance(texts, str) else texts)))
        return self.tokenizer(texts, **options)


@pytest.fixture(scope="module")
def pieces():
    """Byte pairs without words: a merge may reach across spaces, as in Llama 2."""
    backend = Tokenizer(BPE())
    trainer = BpeTrainer(vocab_size=400, show_progress=False)
    backend.train_from_iterator((text.text for text in read_corpus().texts), trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture
def short(monkeypatch):
    """Texts are long from 64 characters on."""
    monkeypatch.setattr(samples_module, "WHOLE_CHARACTERS", 64)
    monkeypatch.setattr(samples_module, "CHARACTERS_PER_TOKEN", 1)
    monkeypatch.setattr(samples_module, "MOST_CHARACTERS", 1024)
    monkeypatch.setattr(samples_module, "GROUP_CHARACTERS", 512)


PASSAGES = " ".join(text.text for text in read_corpus().texts)
LONG_TEXTS = {
    "words": PASSAGES[:20_000],
    "no spaces": PASSAGES[:20_000].replace(" ", ""),
    "one letter": "e" * 20_000,
    "letters by turns": "th" * 10_000,
    "spaces": "the" + " " * 20_000 + "of",
    "spaces now and then": ("the" + " " * 70) * 200,
}


@pytest.mark.parametrize("max_tokens", [1, 5, 40])
@pytest.mark.parametrize("name", LONG_TEXTS)
def test_the_beginning_of_a_long_text_gives_the_same_first_tokens(pieces, short, name, max_tokens):
    whole = pieces(LONG_TEXTS[name])["input_ids"][:max_tokens]
    counting = Counting(pieces)
    (sample,), notes = tokenize(corpus_of(LONG_TEXTS[name]), counting, max_tokens)
    assert sample.token_ids.tolist() == whole
    assert notes == (f"1 samples cut to {max_tokens} tokens",)
    assert max(counting.given) <= 512 * max(1, max_tokens // 5)


@given(
    st.lists(
        st.sampled_from(["the ", "of", " and", "in\n", "e", "  ", "."]), min_size=30, max_size=600
    )
)
def test_no_long_text_gives_other_tokens(pieces, items):
    text = "".join(items).strip() or "the"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples_module, "WHOLE_CHARACTERS", 32)
        patch.setattr(samples_module, "CHARACTERS_PER_TOKEN", 1)
        (sample,), _ = tokenize(corpus_of(text), pieces, 6)
    assert sample.token_ids.tolist() == pieces(text)["input_ids"][:6]


def test_special_tokens_of_a_long_text_stay_at_its_ends(marked_words, short):
    (sample,), _ = tokenize(corpus_of("the of " * 4000), marked_words, 4)
    assert marked_words.decode(sample.token_ids) == "[CLS] the of [SEP]"


def test_a_long_text_that_is_one_word_is_refused(words, short):
    """How many tokens it has is known only when all of it is read, which takes 25 times its size."""
    counting = Counting(words)
    with pytest.raises(
        RepsimError, match=r"'e{20}' is 20,000 characters long, and 1,024 of them give 1 tokens"
    ) as caught:
        tokenize(corpus_of("e" * 20_000), counting, 2)
    assert "\n" not in str(caught.value)
    assert max(counting.given) <= 1024


def test_many_texts_are_tokenized_a_few_at_a_time(words, short):
    texts = [f"the of and in {'the ' * (row % 7)}" for row in range(200)]
    counting = Counting(words)
    samples, _ = tokenize(corpus_of(*texts), counting, 50)
    assert max(counting.given) <= 512
    together = {f"key{row}": ids for row, ids in enumerate(words(texts)["input_ids"])}
    assert {sample.key: sample.token_ids.tolist() for sample in samples} == together


# Identities


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_keys_stay_when_a_file_is_reordered_or_grows(tmp_path, suffix):
    def keys(*texts):
        path = tmp_path / f"c{suffix}"
        path.write_text(
            "".join((json.dumps({"text": t}) if suffix == ".jsonl" else t) + "\n" for t in texts)
        )
        return {text.text: text.key for text in read_corpus(str(path)).texts}

    before = keys("one", "two", "three")
    assert keys("three", "one", "two") == before
    assert keys("zero", "one", "two", "three", "four").items() >= before.items()
    assert len(set(before.values())) == 3


def test_the_digest_of_a_corpus():
    samples = [sample_of("a", 5, 6), sample_of("b", 7)]
    others = [
        [sample_of("c", 5, 6), sample_of("b", 7)],
        [sample_of("a", 5, 8), sample_of("b", 7)],
        [sample_of("a", 5, 6, 6), sample_of("b", 7)],
        [sample_of("a", 5), sample_of("b", 6, 7)],
        samples[::-1],
        samples[:1],
    ]
    assert corpus_digest([sample_of("a", 5, 6), sample_of("b", 7)]) == corpus_digest(samples)
    assert len({corpus_digest(these) for these in [samples, *others]}) == 1 + len(others)


# Round trips

token_lists = st.lists(st.lists(st.integers(0, 96), min_size=1, max_size=12), max_size=12)


@given(token_lists, st.integers(1, 40))
def test_blocks_hold_every_sample_and_are_cut_alike_wherever_one_starts(lists, budget):
    samples = [sample_of(f"key{row}", *ids) for row, ids in enumerate(lists)]
    blocks = cut_blocks(samples, budget)
    assert sum(blocks) == len(samples)
    starts = [0, *np.cumsum(blocks)]
    for block, (first, last) in enumerate(pairwise(starts)):
        tokens = sum(map(len, samples[first:last]))
        assert tokens <= budget or last - first == 1
        assert last == len(samples) or tokens + len(samples[last]) > budget  # one more does not fit
        assert cut_blocks(samples[first:], budget) == blocks[block:]


@given(token_lists.filter(bool), st.floats(0, 30), st.floats(0, 1))
def test_batches_hold_every_sample_in_order_and_waste_no_more_than_asked(lists, overhead, waste):
    samples = [sample_of(f"key{row}", *ids) for row, ids in enumerate(lists)]
    found = batches(samples, 99, overhead=overhead, waste=waste)
    assert [row for batch in found for row in _rows(batch)] == lists
    positions = sum(batch.mask.size for batch in found)
    assert positions * (1 - waste) <= sum(map(len, samples)) + 1e-9
    for batch in found:
        assert batch.mask.any(0).all()  # no position is padding for everyone
        assert (np.diff(batch.mask.astype(int)) <= 0).all()  # padding on the right
        assert (batch.token_ids[~batch.mask] == 99).all()
        assert batch.tokens == batch.mask.sum()


@given(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.floats(0, 30))
def test_no_other_way_to_cut_a_block_costs_less(lengths, overhead):
    samples = [sample_of(f"key{row}", *range(length)) for row, length in enumerate(lengths)]

    def cost(ends):
        return sum(max(lengths[a:b]) * (b - a) + overhead for a, b in pairwise((0, *ends)))

    count = len(lengths)
    every = [
        (*cuts, count) for size in range(count) for cuts in combinations(range(1, count), size)
    ]
    found = np.cumsum(
        [len(batch.mask) for batch in batches(samples, 0, overhead=overhead, waste=1)]
    ).tolist()
    assert cost(found) <= min(map(cost, every)) + 1e-9


def _rows(batch: Batch) -> list[list[int]]:
    return [ids[real].tolist() for ids, real in zip(batch.token_ids, batch.mask, strict=True)]


# Bad input

NOT_TEXT = {
    "3": "a number",
    "0.5": "a number",
    "true": "a boolean",
    "null": "null",
    "[1]": "a list",
    "{}": "an object",
}
REFUSED_FIELDS = [
    (
        "c.jsonl",
        f'{{"id": "a", "text": "one"}}\n{{"id": "b", "text": {value}}}\n'.encode(),
        f"line 2: field 'text' holds {kind}, not text; name a text field with --field (found: id, text)",
    )
    for value, kind in NOT_TEXT.items()
]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "c.csv",
            b"one\n",
            "there is builtin, a .txt or .jsonl file, or hf:name/config:split:field",
        ),
        ("c", b"one\n", "there is builtin, a .txt or .jsonl file, or hf:name/config:split:field"),
        ("c.txt", b"PK\x03\x04\0\0one\n", "a binary file; expected text in UTF-8"),
        ("c.txt", "one\n".encode("utf-16"), "a binary file; expected text in UTF-8"),
        ("c.txt", b"one\ntwo\ncaf\xe9\n", "line 3 is not UTF-8; convert the file first"),
        ("c.txt", b"\xef\xbb\xbfone\n\xe9\n", "line 2 is not UTF-8; convert the file first"),
        ("c.txt", b"", "no text in it (0 empty lines)"),
        ("c.txt", b"\n \n", "no text in it (2 empty lines)"),
        ("c.jsonl", b'{"text": "one"}\n\n{"text": \n', "line 3 is not JSON"),
        ("c.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("c.jsonl", b"1" * 5000, "line 1 is not JSON"),
        (
            "c.jsonl",
            b'{"body": "one", "id": 3}\n',
            "line 1: no field 'text'; name a text field with --field (found: body, id)",
        ),
        *REFUSED_FIELDS,
        (
            "c.jsonl",
            b'["one"]\n',
            'line 1: holds a list, not an object with fields; write {"text": ...}',
        ),
        (
            "c.jsonl",
            b'{"text": "one"}\n{"text": "\\ud800"}\n',
            "text 2 is not valid Unicode; mend or remove it",
        ),
    ],
)
def test_files_that_are_refused(file, name, content, message):
    path = file(name, content)
    with pytest.raises(RepsimError) as caught:
        read_corpus(path)
    assert str(caught.value).startswith(f"corpus {path!r}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.txt", "corpus 'absent.txt': no such file"),
        ("absent", "corpus 'absent': there is builtin, a .txt"),
        (
            "hf:glue",
            "corpus 'hf:glue': write hf:name/config:split:field, e.g. hf:glue/sst2:validation:sentence",
        ),
        ("hf:glue/sst2:train", "corpus 'hf:glue/sst2:train': write hf:name/config:split:field"),
        ("hf:glue/sst2::text", "corpus 'hf:glue/sst2::text': write hf:name/config:split:field"),
        ("hf:a:b:c:d", "corpus 'hf:a:b:c:d': write hf:name/config:split:field"),
        (
            "hf:org/name:train:text",
            "corpus 'hf:org/name:train:text': no field 'text'; found: sentence, label, gap",
        ),
        (
            "hf:org/name:train:label",
            "corpus 'hf:org/name:train:label': row 1: field 'label' holds a number, not text",
        ),
        (
            "hf:absent:train:text",
            "corpus 'hf:absent:train:text': not to be had from the hub or its cache: Dataset 'absent' doesn't exist",
        ),
        (
            "hf:glue/sst2:test:text",
            "corpus 'hf:glue/sst2:test:text': not to be had from the hub or its cache: Unknown",
        ),
        (
            "hf:org/name:test:text",
            "corpus 'hf:org/name:test:text': not to be had from the hub or its cache: Unknown",
        ),
    ],
)
def test_sources_that_are_refused(hub, source, message):
    with pytest.raises(RepsimError) as caught:
        read_corpus(source)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "problem", [RuntimeError, ConnectionError, datasets.exceptions.DatasetGenerationError]
)
def test_whatever_the_data_set_library_raises_is_one_line(monkeypatch, problem):
    def fail(*_args, **_options):
        raise problem("no\nluck " * 200)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        RepsimError, match=r"^corpus 'hf:a/b:c:d': not to be had .*: no luck no luck"
    ) as caught:
        read_corpus("hf:a/b:c:d")
    assert len(str(caught.value)) < 300


def test_a_file_that_cannot_be_read(monkeypatch, file):
    path = file("c.txt", "one")

    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(RepsimError, match="cannot be read: Permission denied"):
        read_corpus(path)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(RepsimError, match=f"^limit={limit}: at least 1$"):
        read_corpus(limit=limit)


@pytest.mark.parametrize(
    ("text", "max_tokens", "message"),
    [
        ("the of", 0, "max_tokens=0: at least 1"),
        ("the of", 1, "max_tokens=1: the tokenizer's special tokens alone are more"),
    ],
)
def test_token_limits_that_are_refused(marked_words, text, max_tokens, message):
    with pytest.raises(RepsimError, match=message):
        tokenize(corpus_of(text), marked_words, max_tokens)


def test_texts_without_tokens_are_refused(words):
    with pytest.raises(RepsimError, match=r"^corpus 'own': no text gives a token$"):
        tokenize(corpus_of("", " "), words, 5)
