"""A stand-in for the Hub: repositories of models and datasets as lists of commits, large files by digest. No Xet."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from tests.wire.stand_in import Request, Service

TOKEN = "hf_" + "x" * 20
LARGE = re.compile(r"\.(safetensors|gguf)$")
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """Every commit is a mapping of names to bytes; large files are kept as b"lfs:OID"."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]

    def at(self, revision: str) -> dict[str, bytes]:
        return self.files if revision == "main" else dict(self.commits)[revision]

    def knows(self, revision: str) -> bool:
        return revision == "main" or revision in dict(self.commits)

    def add(self, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits.append((name, files))
        return name


class HubServer(Service):
    """Knows repositories and large files; takes one token. Fails also as: revoked."""

    def __init__(self) -> None:
        super().__init__()
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.datasets: dict[str, Repo] = {}
        self.served = 0  # bytes of files of datasets

    def read(self, repo: str, name: str) -> bytes:
        """A file's content as a reader of main gets it."""
        data = self.repos[repo].files[name]
        return self.large[data[4:].decode()] if data.startswith(b"lfs:") else data

    def answer(self, request: Request) -> None:
        path = unquote(urlsplit(request.path).path)
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            self.take(request, match[1])
        elif request.headers.get("Authorization") != f"Bearer {TOKEN}":
            request.reply(
                401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials in Authorization header"
            )
        elif path in ("/api/validate-yaml", "/lfs-verify"):
            request.body()
            request.reply(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(request, request.json())
        elif match := re.fullmatch(rf"/{REPO}\.git/info/lfs/objects/batch", path):
            request.reply(200, {"objects": [self.action(one) for one in request.json()["objects"]]})
        elif match := re.fullmatch(rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", path):
            request.reply(200, self.repos[match["repo"]].at(match["revision"])[match["name"]])
        elif match := re.fullmatch(rf"/datasets/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", path):
            self.file(request, self.datasets[match["repo"]], match["revision"], match["name"])
        elif re.fullmatch(rf"/api/datasets/{REPO}/tree/[^/]+/.+", path):  # repositories here have no folders
            request.reply(404, {"error": "not found"}, X_Error_Code="EntryNotFound")
        elif match := re.fullmatch(rf"/api/datasets/{REPO}/(?P<verb>tree|paths-info)/(?P<revision>[^/]+)", path):
            self.entries(request, self.datasets[match["repo"]].at(match["revision"]), match["verb"])
        elif match := re.fullmatch(rf"/api/datasets/{REPO}(?:/revision/(?P<revision>[^/]+))?", path):
            self.dataset(request, match["repo"], match["revision"] or "main")
        elif match := re.fullmatch(rf"/api/models/{REPO}(?:/(?P<verb>[\w-]+)/(?P<revision>[^/]+))?", path):
            self.model(request, match)
        else:
            request.reply(405)

    def create(self, request: Request, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.repos else 200
        if status == 200:
            self.repos[name] = Repo(private=asked.get("private") or asked.get("visibility") == "private")
            self.repos[name].add({".gitattributes": b"*.gguf filter=lfs\n"})
        request.reply(status, {"url": f"{self.url}/{name}", "id": name})

    def model(self, request: Request, match: re.Match[str]) -> None:
        repo = self.repos.get(match["repo"])
        if repo is None:
            request.reply(404, {"error": "not found"}, X_Error_Code="RepoNotFound")
            return
        match match["verb"]:
            case None | "revision":
                names = [{"rfilename": name} for name in repo.files]
                request.reply(200, {"id": match["repo"], "sha": repo.head, "siblings": names, "private": repo.private})
            case "preupload":
                files = [self.mode(repo, file["path"]) for file in request.json()["files"]]
                request.reply(200, {"files": files})
            case "tree" | "paths-info":
                self.entries(request, repo.at(match["revision"]), match["verb"])
            case "commit":
                self.commit(request, match["repo"], [json.loads(line) for line in request.body().splitlines()])

    def entries(self, request: Request, files: dict[str, bytes], verb: str) -> None:
        """What is known of all files, or of those that are asked for."""
        wanted = list(files) if verb == "tree" else self.paths(request)
        request.reply(200, [info(name, files[name]) for name in wanted if name in files])

    def dataset(self, request: Request, name: str, revision: str) -> None:
        """What is known of a dataset at a revision: its commit, its files, and the head of its card."""
        repo = self.datasets.get(name)
        if repo is None or not repo.knows(revision):
            code = "RevisionNotFound" if repo else "RepoNotFound"
            request.reply(404, {"error": "not found"}, X_Error_Code=code)
            return
        files = repo.at(revision)
        names = [{"rfilename": file} for file in files]
        card = yaml.safe_load(files.get("README.md", b"---\n{}\n---\n").decode().split("---")[1])
        sha = repo.head if revision == "main" else revision
        request.reply(200, {"id": name, "sha": sha, "siblings": names, "cardData": card, "private": repo.private})

    def file(self, request: Request, repo: Repo, revision: str, name: str) -> None:
        """A file as it is downloaded: what it is first, by HEAD, then its bytes."""
        data = repo.at(revision).get(name)
        if data is None:
            request.reply(404, {"error": "not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=repo.head)
            return
        headers = {"X_Repo_Commit": revision, "ETag": f'"{oid(data)}"', "Content_Length": str(len(data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        part = data[int(asked[1]) : int(asked[2]) + 1] if asked else data
        self.served += len(part) if request.command == "GET" else 0
        request.reply(206 if asked else 200, part, **(headers if request.command == "HEAD" else {}))

    def paths(self, request: Request) -> list[str]:
        body = request.body().decode()
        if body.startswith("{"):
            return list(json.loads(body)["paths"])
        return [unquote(part.removeprefix("paths=")) for part in body.split("&") if part.startswith("paths=")]

    def mode(self, repo: Repo, name: str) -> dict[str, Any]:
        known = repo.files.get(name)
        return {
            "path": name,
            "uploadMode": "lfs" if LARGE.search(name) else "regular",
            "shouldIgnore": False,
            "oid": oid(known) if known else None,
        }

    def action(self, asked: dict[str, Any]) -> dict[str, Any]:
        there = asked["oid"] in self.large
        actions = {"upload": {"href": f"{self.url}/lfs/{asked['oid']}"}, "verify": {"href": f"{self.url}/lfs-verify"}}
        return asked if there else {**asked, "actions": actions}

    def take(self, request: Request, name: str) -> None:
        data = request.body()
        good = hashlib.sha256(data).hexdigest() == name
        if good:
            self.large[name] = data
        request.reply(200 if good else 400)

    def commit(self, request: Request, name: str, lines: list[dict[str, Any]]) -> None:
        """One commit of all lines, or none: a parent that is not the head, or a large file that is not here."""
        repo = self.repos[name]
        files, header = dict(repo.files), lines[0]["value"]
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.large:
                        request.reply(400, {"error": "LFS object is not there"})
                        return
                    files[value["path"]] = f"lfs:{value['oid']}".encode()
                case "deletedFile":
                    del files[value["path"]]
        if header.get("parentCommit") not in (None, repo.head):
            request.reply(412, {"error": "A commit has happened since"})
            return
        made = repo.add(files)
        request.reply(200, {"commitUrl": f"{self.url}/{name}/commit/{made}", "commitOid": made})


def oid(data: bytes) -> str:
    """git's name of a small file, the digest of a large one."""
    if data.startswith(b"lfs:"):
        return data[4:].decode()
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


def info(name: str, data: bytes) -> dict[str, Any]:
    large = {"oid": oid(data), "size": 1, "pointerSize": 1} if data.startswith(b"lfs:") else None
    return {"type": "file", "path": name, "size": len(data), "oid": oid(data), **({"lfs": large} if large else {})}
