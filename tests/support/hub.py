"""Serve a stand-in for the Hugging Face hub on loopback, so that tests use the real clients without
a network.

    with Hub(tmp_path) as hub:      # models/<id>/..., datasets/<owner>/<name>/...
        subprocess.run(..., env={**os.environ, **hub.environment(tmp_path / "home")})

Every repository has the same commits, all of them with the same files. Repositories in `gated`
refuse their files, as the hub does to people who have not accepted their terms. The clients read
their settings when they are imported, so only a process of its own talks to this server.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VERB = r"(?:/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<under>.+))?)?"
API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<id>.+?)" + VERB)
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<id>.+?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Hub:
    """A server of the folder `root` that runs while the `with` block lasts.

    Attributes:
        commits: the commits that clients can request, the newest last.
        requests: the requests so far, as (method, path).
        cuts: the number of connections cut in the middle of a file, one in every `cut_every` files.
    """

    def __init__(self, root: Path, gated: Collection[str] = (), cut_every: int = 0):
        self.root, self.gated, self.cut_every = root, gated, cut_every
        self.files = self.cuts = 0
        self.commits = [COMMIT]
        self.requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self})
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Return variables that send a fresh process here, with its cache under `home`."""
        return client_environment(self.url, home)


def client_environment(url: str, home: Path) -> dict[str, str]:
    """Return variables for a client of the hub at `url`. They overrule the caller's own
    environment.
    """
    caches = {"HF_HOME": home, "HF_HUB_CACHE": home / "hub", "HF_DATASETS_CACHE": home / "datasets"}
    off = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
    quiet = dict.fromkeys(
        ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_XET"), "1"
    )
    return {
        "HF_ENDPOINT": url,
        "HF_TOKEN": "",
        "NO_PROXY": "*",
        "no_proxy": "*",
        **{k: str(v) for k, v in caches.items()},
        **off,
        **quiet,
    }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing; tests read `hub.requests` instead."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        path = unquote(address.path)
        self.hub.requests.append((self.command, path))
        if match := API.fullmatch(path):
            self._api(**match.groupdict(), query=parse_qs(address.query), body=body)
        elif match := FILE.fullmatch(path):
            self._file(
                "datasets" if match["kind"] else "models",
                match["id"],
                match["revision"],
                match["path"],
            )
        else:
            self._refuse(404, "RepoNotFound")

    do_HEAD = do_POST = do_GET

    def _api(
        self,
        kind: str,
        id: str,
        verb: str | None,
        revision: str | None,
        under: str | None,
        query: Any,
        body: bytes,
    ) -> None:
        repository = self.hub.root / kind / id
        if not repository.is_dir():
            return self._refuse(404, "RepoNotFound")
        if (commit := self._commit(revision)) is None:
            return self._refuse(404, "RevisionNotFound")
        if verb == "paths-info":
            paths = [repository / path for path in _wanted_paths(body)]
            return self._json([self._entry(repository, path) for path in paths if path.exists()])
        if verb == "tree":
            folder = repository / (under or "")
            if not folder.is_dir():
                return self._refuse(404, "EntryNotFound")
            recursive = query.get("recursive", [""])[0].lower() in ("true", "1")
            return self._json(
                [
                    self._entry(repository, path)
                    for path in sorted(folder.rglob("*") if recursive else folder.iterdir())
                ]
            )
        siblings = [
            {"rfilename": path.relative_to(repository).as_posix()}
            for path in sorted(repository.rglob("*"))
            if path.is_file()
        ]
        return self._json(
            {"id": id, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        )

    def _entry(self, repository: Path, path: Path) -> dict[str, Any]:
        kind = "directory" if path.is_dir() else "file"
        return {
            "type": kind,
            "path": path.relative_to(repository).as_posix(),
            "oid": _etag(path),
            "size": path.stat().st_size,
        }

    def _commit(self, revision: str | None) -> str | None:
        commit = self.hub.commits[-1] if revision in (None, "main") else revision
        return commit if commit in self.hub.commits else None

    def _file(self, kind: str, id: str, revision: str, name: str) -> None:
        path = self.hub.root / kind / id / name
        if id in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        if (commit := self._commit(revision)) is None:
            return self._refuse(404, "RevisionNotFound")
        if not path.is_file():
            return self._refuse(
                404, "EntryNotFound" if (self.hub.root / kind / id).is_dir() else "RepoNotFound"
            )
        content, status, headers = (
            path.read_bytes(),
            200,
            {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"},
        )
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
        self.hub.files += self.command == "GET"
        cut = (
            self.hub.cut_every
            and self.command == "GET"
            and self.hub.files % self.hub.cut_every == 0
        )
        return self._reply(status, content, headers, len(content) // 2 if cut else None)

    def _json(self, value: Any) -> None:
        self._reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._reply(
            status,
            json.dumps({"error": code}).encode(),
            {"X-Error-Code": code, "X-Repo-Commit": COMMIT},
        )

    def _reply(
        self, status: int, content: bytes, headers: dict[str, str], cut_at: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut_at])
        if cut_at is not None:
            self.hub.cuts += 1
            self.close_connection = True


def _wanted_paths(body: bytes) -> list[str]:
    """Return the paths of a request. Clients send JSON or a form, depending on their version."""
    wanted = (
        json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
    )
    return [wanted] if isinstance(wanted, str) else wanted


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes() if path.is_file() else str(path).encode()).hexdigest()
