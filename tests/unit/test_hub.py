"""The hub, played by a local server."""

import hashlib
import http.server
import json
import logging
import threading
from typing import ClassVar

import pytest
from huggingface_hub import constants

from peas.data.audioset.parquet import hub_folder
from peas.errors import DataError

SHA = "1" * 40
FILES = {
    "data/bal_train/0[1].parquet": b"balanced",
    "data/unbal_train/00.parquet": b"unbalanced",
    "README.md": b"text",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """Just what the client asks of one public data set."""

    got: ClassVar[list[str]] = []
    broken = False

    def do_GET(self):
        path = self.path.partition("?")[0].replace("%5B", "[").replace("%5D", "]")
        if "/resolve/" in path:
            name = path.partition(f"/resolve/{SHA}/")[2]
            if self.command == "GET":
                self.got.append(name)
                if self.broken:
                    return self._answer(403, b"")
            data = FILES[name]
            tag = hashlib.sha1(data).hexdigest()
            return self._answer(200, data, ETag=f'"{tag}"', X_Repo_Commit=SHA)
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in FILES.items()
            ]
            return self._answer(200, json.dumps(entries).encode())
        if path.startswith("/api/datasets/owner/name"):
            info = {"id": "owner/name", "sha": SHA, "tags": [], "downloads": 0, "likes": 0}
            info["siblings"] = [{"rfilename": name} for name in FILES]
            return self._answer(200, json.dumps(info).encode())
        return self._answer(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def _answer(self, status, body, **heads):
        self.send_response(status)
        for name, value in heads.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Nothing on the screen."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    url = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "got", [])
    monkeypatch.setattr(Hub, "broken", False)
    yield server
    server.shutdown()
    server.server_close()


def _balanced(file):
    return "/bal_train/" in file


def _names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_only_what_is_wanted_is_fetched_and_once(hub):
    folder = hub_folder("hf://owner/name", _balanced)
    assert _names(folder) == ["data/bal_train/0[1].parquet"]
    assert (folder / "data/bal_train/0[1].parquet").read_bytes() == b"balanced"
    assert hub_folder("hf://owner/name", _balanced) == folder
    assert Hub.got == ["data/bal_train/0[1].parquet"]
    assert hub_folder("hf://owner/name@main", lambda file: file.endswith(".parquet")) == folder
    assert len(_names(folder)) == 2


def test_without_network_the_cache_is_used(hub, monkeypatch, caplog):
    folder = hub_folder("hf://owner/name", _balanced)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING):
        assert hub_folder("hf://owner/name", _balanced) == folder
    assert str(folder) in caplog.text
    # What was not fetched is missed, and not quietly left out.
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE.*incomplete"):
        hub_folder("hf://owner/name", lambda file: file.endswith(".parquet"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub_folder("hf://owner/name", _balanced) == folder


def test_neither_network_nor_cache(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"hf://owner/name.*refused.*hf download"):
        hub_folder("hf://owner/name", _balanced)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"HF_HUB_OFFLINE.*missing"):
        hub_folder("hf://owner/name", _balanced)


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(DataError, match=r"hf://owner/none.*check its name"):
        hub_folder("hf://owner/none", _balanced)
    with pytest.raises(DataError, match=r"hf://owner/name.*Parquet"):
        hub_folder("hf://owner/name", lambda file: False)


def test_a_download_that_breaks_off(hub, monkeypatch):
    monkeypatch.setattr(Hub, "broken", True)
    with pytest.raises(DataError, match=r"hf://owner/name.*403.*resumes"):
        hub_folder("hf://owner/name", _balanced)
    monkeypatch.setattr(Hub, "broken", False)
    assert _names(hub_folder("hf://owner/name", _balanced)) == ["data/bal_train/0[1].parquet"]


@pytest.mark.parametrize("name", ["hf://name", "hf://", "hf://a/b/c"])
def test_a_name_of_another_form(name):
    with pytest.raises(DataError, match="a hub copy is hf://owner/name"):
        hub_folder(name, _balanced)
