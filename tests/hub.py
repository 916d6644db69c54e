"""Imitate what `huggingface_hub` asks of the Hub when it uploads: a server on this machine that keeps what it is sent.

Written after the requests of huggingface_hub 2: repositories are made, cards checked, files sorted into small ones,
which come with the commit, and large ones, which are put into the store of git LFS before it.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml


@dataclass
class Hub:
    """Hold what the server was sent: repositories with their settings, files by repository, and tokens."""

    address: str = ""
    repositories: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)
    store: dict = field(default_factory=dict)
    tokens: set = field(default_factory=set)

    def answer(self, method, path, headers, body):
        """Return status and content of the answer to a request."""
        self.tokens.add(headers.get("Authorization"))
        path = path.partition("?")[0]
        if method == "PUT" and path.startswith("/store/"):
            oid = path.removeprefix("/store/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.store[oid] = body
            return 200, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] == "another":
                return 403, {"error": "You don't have the rights to create a repo under this namespace"}
            if name in self.repositories:
                return 409, {"error": "You already created this repo", "url": f"{self.address}/{name}"}
            self.repositories[name] = asked
            return 200, {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            card = json.loads(body)
            facts = yaml.safe_load(card["content"].split("---")[1])
            wrong = card["repoType"] == "space" and facts.get("sdk") not in ("static", "gradio", "docker")
            return (400, {"errors": [{"message": "sdk"}]}) if wrong else (200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)/preupload/main", path):
            return 200, {"files": [self._sorted(entry, found[2]) for entry in json.loads(body)["files"]]}
        if re.fullmatch(r"/(spaces/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = [
                own | {"actions": {"upload": {"href": f"{self.address}/store/{own['oid']}"}}}
                for own in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if found := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)/commit/main", path):
            return 200, self._committed(found[2], body)
        return 404, {"error": f"{method} {path} is not imitated"}

    def _sorted(self, entry, name):
        assert name in self.repositories
        mode = "lfs" if entry["path"].endswith(".safetensors") else "regular"
        return {"path": entry["path"], "uploadMode": mode, "shouldIgnore": False}

    def _committed(self, name, body):
        held = self.files.setdefault(name, {})
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                held[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                held[value["path"]] = self.store[value["oid"]]
        return {"commitUrl": f"{self.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40}


@contextlib.contextmanager
def imitated_hub(monkeypatch):
    """Run the server, and send `huggingface_hub` to it with a token."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self):
            body = self._body()
            status, content = hub.answer(self.command, self.path, self.headers, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PUT = do_GET = do_HEAD = _answer  # names that http.server looks for

        def _body(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while n := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(n))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_imitated")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
