"""W&B out of reach, before, during and at the end of a run: nothing is lost and nothing waits for ever."""

import gzip
import json
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import wandb

from fedgh.tracking import offline
from fedgh.tracking.recorder import read_csv

TINY = [
    *("num_rounds=4", "partition=iid", "partition.num_clients=3", "algorithm.local_epochs=1", "trainer=cpu"),
    *("dataset.train_fraction=0.1", "model.hidden=[4]", "executor=sequential", "callback=none"),
    *("logger=wandb", "logger.mode=online"),
]


pytestmark = [  # W&B's service is stopped in the middle of what it does
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


class Handler(BaseHTTPRequestHandler):
    """As much of W&B's server as a run needs; ``server.status`` other than 200 refuses everything."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_PUT(self):
        self.content()
        self.answer({})

    do_GET = do_PUT

    def do_POST(self):
        data = self.content()
        if self.server.status != 200:
            self.answer({"errors": [{"message": "user is not logged in"}]})
        elif self.path.endswith("/file_stream"):
            files = json.loads(data).get("files", {})
            self.server.rows += files.get("wandb-history.jsonl", {}).get("content", [])
            self.answer({"limits": {}})
        else:
            self.answer({"data": self.graphql(json.loads(data or b"{}"))})

    def graphql(self, asked):
        text, values = asked.get("query", ""), asked.get("variables") or {}
        project = {"id": "p", "name": "fedgh", "entity": {"id": "e", "name": "me"}}
        if "upsertBucket" in text:
            run = {"id": "UnVuOjE=", "name": values["name"], "displayName": "x", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": {**run, "historyLineCount": 0}, "inserted": True}}
        if re.search("query RunResumeStatus", text):
            return {"model": {**project, "bucket": None}}
        if "createRunFiles" in text:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/{name}"} for name in values["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def content(self):
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def answer(self, body):
        data = json.dumps(body).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    status = 200
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A connection that W&B's service has dropped is nobody's concern."""


@pytest.fixture
def server(monkeypatch):
    with Server(("127.0.0.1", 0), Handler) as server:
        server.rows = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        wandb.teardown()  # its settings are read once
        yield server
        server.shutdown()
    monkeypatch.undo()
    wandb.teardown()


def check(answer, kind):
    """The run ended well, and its files hold every round; returns where ``wandb sync`` finds them."""
    assert answer.code == 0, answer.err
    assert [row["round"] for row in read_csv(answer.run_dir / "metrics.csv")] == [1, 2, 3, 4]
    wandb.teardown()
    (path,) = answer.run_dir.glob(f"wandb/{kind}-*/run-*.wandb")
    found = offline.contents(path)
    assert [row["round"] for row in found.rows] == [1, 2, 3, 4]
    assert found.summary["rounds"] == 4
    return path.parent


def test_an_online_run(cli, server):
    answer = cli(*TINY, "logger.patience=30")
    check(answer, "run")
    assert [json.loads(row)["round"] for row in server.rows] == [1, 2, 3, 4]
    assert "wandb sync" not in answer.out


def test_a_wrong_key(cli, server):
    server.status = 401
    answer = cli(*TINY, "logger.patience=5")
    folder = check(answer, "offline-run")
    assert "user is not logged in" in answer.out
    assert f"recorded offline, to be sent later: wandb sync {folder}" in answer.out


def test_a_server_that_does_not_answer(cli, server):
    server.shutdown()
    server.server_close()
    answer = cli(*TINY, "logger.patience=3")
    folder = check(answer, "offline-run")
    assert f"recorded offline, to be sent later: wandb sync {folder}" in answer.out


def test_a_server_that_goes_away_in_the_middle(cli, server, monkeypatch, in_round):
    def vanish():
        server.shutdown()
        server.server_close()

    in_round(monkeypatch, 3, vanish)
    answer = cli(*TINY, "logger.patience=5")
    folder = check(answer, "run")
    assert f"W&B has not taken all of this run; to be sent later: wandb sync {folder}" in answer.out


def test_a_key_that_is_withdrawn_in_the_middle(cli, server, monkeypatch, in_round):
    in_round(monkeypatch, 3, lambda: setattr(server, "status", 401))
    answer = cli(*TINY, "logger.patience=5")
    folder = check(answer, "run")
    assert f"W&B has not taken all of this run; to be sent later: wandb sync {folder}" in answer.out


def test_a_service_that_crashes_does_not_stop_the_run(cli, server, monkeypatch, in_round):
    """W&B sends from a process of its own; what it had not written is in metrics.csv alone."""

    psutil = pytest.importorskip("psutil")

    def crash():
        for child in psutil.Process().children():
            if "wandb-core" in child.name():
                child.kill()
                child.wait()

    in_round(monkeypatch, 3, crash)
    answer = cli(*TINY, "logger.patience=5")
    assert answer.code == 0, answer.out
    assert [row["round"] for row in read_csv(answer.run_dir / "metrics.csv")] == [1, 2, 3, 4]
    assert "WandbLogger did not take round" in answer.out
    assert "WandbLogger was not closed" in answer.out
    assert wandb.run is None, "the next job of a sweep would write into this run"
    with suppress(OSError):
        wandb.teardown()


@pytest.mark.parametrize("patience", ["0", "soon", "true"])
def test_a_bad_patience_is_refused(cli, patience):
    answer = cli(f"logger.patience={patience}")
    assert answer.code == 2
    assert "logger.patience must be a positive number of seconds, got" in answer.err
