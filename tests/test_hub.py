"""Where the hub does not answer, nothing waits for it; where it does, nothing changes."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pytest
from huggingface_hub import constants

from repsim.data.corpus import read_corpus
from repsim.errors import DataError, ModelError
from repsim.hub import cache_if_unreachable
from repsim.models import load


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not told that there is no network; nobody listens where the hub should be."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def server() -> Iterator[str]:
    """A hub that knows nothing."""

    class Nothing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_words: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


def settings() -> tuple[bool, bool]:
    return constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


def test_a_hub_that_does_not_answer_is_not_asked_again() -> None:
    with cache_if_unreachable():
        assert settings() == (True, True)
    assert settings() == (False, False)


def test_one_that_answers_is_asked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server)
    with cache_if_unreachable():
        assert settings() == (False, False)


def test_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is refused from the cache; no request is made again and again."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", pytest.fail)
    with pytest.raises(DataError, match=r"^corpus 'hf:no/such:test:text': cannot be read from the"):
        read_corpus("hf:no/such:test:text")
    with pytest.raises(ModelError, match=r"^model 'no-such/model': not embedded"):
        load("no-such/model")
