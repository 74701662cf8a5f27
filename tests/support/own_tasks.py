"""A folder of tasks of one's own, as lm-eval's users write them: choices, texts to be written, a
last word, whole pages; a group, an included file, a function. Words are those that the tiny models
know.
"""

import json
import random
from pathlib import Path
from typing import Any

WORDS = (
    "the time of day is in a house and it was one that people see now who with when over about your"
)
ROWS = 5

BASE = """
dataset_path: json
training_split: train
test_split: test
doc_to_text: "{{question}}"
metadata:
  version: 2.0
"""
CHOICES = """
include: base
task: {name}
tag: own_choices
dataset_kwargs:
  data_files:
    train: rows.jsonl
    test: {name}.jsonl
output_type: multiple_choice
doc_to_choice: "{{{{answers}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - metric: acc
  - metric: acc_norm
"""
WRITE = """
include: base
task: own_writing
dataset_kwargs:
  data_files: {train: rows.jsonl, test: rows.jsonl}
output_type: generate_until
doc_to_text: !function own_functions.ask
doc_to_target: "{{answers[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
filter_list:
  - name: first-word
    filter: [{function: regex, regex_pattern: "(\\\\w+)"}, {function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
CLOZE = """
include: base
task: own_cloze
dataset_kwargs:
  data_files: {train: rows.jsonl, test: rows.jsonl}
output_type: loglikelihood
doc_to_target: " {{answers[gold]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
PAGES = """
task: own_pages
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
GROUP = """
group: own_group
task: [own_first, own_second]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
metadata: {version: 1.5}
"""
FUNCTIONS = '''
def ask(doc):
    """The question and the beginning of an answer."""
    return doc["question"] + " it is"
'''
NAMES = ("own_group", "own_writing", "own_cloze", "own_pages")
# What most tokenizers made for chats have, in words.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} end\n"
    "{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def write_own_tasks(folder: Path) -> Path:
    """The folder, with its data beside the tasks' settings."""
    dice = random.Random(1)

    def words(count: int) -> str:
        return " ".join(dice.choices(WORDS.split(), k=count))

    def rows() -> list[dict[str, Any]]:
        return [
            {"question": words(6), "answers": [words(1) for _ in "abc"], "gold": row % 3}
            for row in range(ROWS)
        ]

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("rows", "own_first", "own_second"):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows()))
    (folder / "base").write_text(BASE)
    (folder / "own_functions.py").write_text(FUNCTIONS)
    for name in ("own_first", "own_second"):
        (folder / f"{name}.yaml").write_text(CHOICES.format(name=name))
    for name, text in (("writing", WRITE), ("cloze", CLOZE), ("pages", PAGES), ("group", GROUP)):
        (folder / f"own_{name}.yaml").write_text(text)
    return folder
