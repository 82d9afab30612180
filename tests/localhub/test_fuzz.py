"""Hostile requests to every route: a clear 4xx, never a 500, nothing outside the data folder, and the Hub still answers.

The walk reads `all_routes()`, so a route that is added later is walked too. `HFFLOW_FUZZ=n` makes n examples of each test,
from another seed each time; without it the examples are always the same few.
"""
import base64
import gzip
import hashlib
import inspect
import json
import os
import re
import socket
import sys
from http.client import HTTPException, HTTPResponse
from io import BytesIO
from urllib.parse import quote

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfflow.localhub.server import all_routes, running
from hub_process import TOKENS

MORE = int(os.environ.get("HFFLOW_FUZZ", 0))
ROUTES = [(method, path, f) for routes in all_routes() for path, methods, f, _ in (r for r in routes if isinstance(r, tuple)) for method in methods]


def examples(n):
    return settings(max_examples=MORE or n, derandomize=not MORE, deadline=None, database=None, suppress_health_check=list(HealthCheck))


class Target:
    """A Hub in this process, and raw requests to it: no client would send these."""

    def __init__(self, url, hub):
        self.url, self.hub, self.address = url, hub, ("127.0.0.1", int(url.rsplit(":", 1)[1]))

    def raw(self, data, end=False):
        """Send bytes, and no more where `end`; (status, headers, body), or (None, {}, b'') where the Hub only hangs up."""
        with socket.create_connection(self.address, 30) as s:
            try:
                s.sendall(data)
                if end:
                    s.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has heard enough
            try:
                r = HTTPResponse(s, method=data.split(b" ", 1)[0].decode("latin-1"))
                r.begin()
                return r.status, dict((k.lower(), v) for k, v in r.getheaders()), r.read()
            except (OSError, HTTPException):
                return None, {}, b""

    def __call__(self, method, path, body=b"", headers=(), user="you"):
        head = {"Host": f"127.0.0.1:{self.address[1]}", "Connection": "close", "Content-Length": str(len(body))}
        if user:
            head["Authorization"] = f"Bearer {TOKENS[user]}"
        head |= dict(headers)
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in head.items() if v is not None)]
        return self.raw("\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body)

    def post(self, path, body, **kw):
        return self("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), **kw)


def commit_body(files, **header):
    lines = [dict(key="header", value=dict(summary="x", **header)), *[dict(key="file", value=dict(path=p, content=base64.b64encode(c).decode())) for p, c in files.items()]]
    return "\n".join(map(json.dumps, lines)).encode()


def fill(t):
    """A public and a private repo of each kind with a little of everything in it."""
    for kind, sdk in (("model", None), ("dataset", None), ("space", "static")):
        for name, private in (("open", False), ("secret", True)):
            api = f"/api/{kind}s/you/{name}"
            if t("GET", api)[0] == 200:
                continue  # nobody has deleted it
            assert t.post("/api/repos/create", dict(name=name, type=kind, sdk=sdk, private=private))[0] == 200
            files = {"README.md": b"---\ntags: [x]\n---\n# Hi\n", "d/a.txt": b"a\n", "data.csv": b"a,b\n1,2\n", "d/e/f.json": b"{}"}
            assert t.post(f"{api}/commit/main", commit_body(files))[0] == 200
            assert t.post(f"{api}/branch/dev", {})[0] == 201
            assert t.post(f"{api}/tag/main", dict(tag="v1", message="First"))[0] == 201
            assert t.post(f"{api}/discussions", dict(title="A talk", description="Words"))[0] == 200
            assert t.post(f"{api}/commit/main?create_pr=1", commit_body({"pr.txt": b"1"}))[0] == 200


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "decoy").mkdir()
    (folder / "decoy" / "file").write_text("decoy")
    with running(folder / "hub", [f"{n}:{t}" for n, t in TOKENS.items()], ["org:you"]) as (url, hub):
        t = Target(url, hub)
        fill(t)
        t.size = psutil.Process().memory_info().rss
        outside = look(folder)
        yield t
        assert look(folder) == outside, "something was written outside the data folder"
        fill(t)
        assert t("GET", "/api/models/you/secret")[0] == 200


def look(folder):
    return sorted((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in folder.rglob("*") if not f.is_relative_to(folder / "hub"))


def fair(answer, what):
    """What every answer must be, however hostile the question."""
    status, headers, body = answer
    if body == b"Invalid HTTP request received.":
        return status  # it was no HTTP, so it reached no handler
    assert status and (status < 500 or status in (501, 507)), (what, status, body[:300])
    if status >= 400 and "json" in headers.get("content-type", ""):
        assert json.loads(body)["error"] and headers["x-error-message"], what
    if status >= 400 and what[1].startswith("/api/"):
        assert "json" in headers.get("content-type", ""), (what, status, headers)
    return status


# What a path or a field may hold. The first are right, so that a request gets past its first check.
GOOD = {"kind": ["model"], "ns": ["you"], "name": ["open", "open", "secret"], "rev": ["main", "dev", "v1", "refs%2Fpr%2F2"], "path": ["README.md", "d", "data.csv", "d/e/f.json"],
        "num": ["1", "2"], "user": ["you", "ann"], "owner": ["you"], "org": ["org"], "sha": ["main"], "status": ["pending"], "oid": ["0" * 64], "slug": ["x-" + "0" * 24]}
SEGMENTS = ["..", "%2e%2e", ".", "%00", "a%00b", "%ff", "%c0%ae%c0%ae", "%ed%a0%80", "x" * 300, "%F0%9F%98%80", "a%2Fb", "..%2f..%2fhub.sqlite3", "%2fetc%2fpasswd", "refs%2Fpr%2F1", "refs/pr/1", "refs%2Fheads%2Fmain", "@{", "%40%7B-1%7D", "main~1", "main^",
            "HEAD", "--upload-pack=touch", "-x", "a.lock", "%0d%0aX-Evil:%201", "%5c..%5c", "con", "a:b", "%3Cscript%3E", "%E2%80%AE", "'", "%22", "*", "%3F", "%23", "1" * 40, "0" * 64, "9" * 30, "-1", "1e9", "%D9%A3", "", "%20", "%25", "%2525", "models", "datasets", "api", "null"]
TEXTS = ["", "x", "../../x", "/etc/passwd", "a\0b", "\ud800", "\udfff", "\ufffe", "x" * 5000, "refs/pr/1", "refs/heads/../x", "-x", "a\nb", "<script>alert(1)</script>", "you/open", "you/x", "ann/x", "a/b/c", "main", "0" * 64, "1" * 40, "é", "e\u0301", "\u202e", "2" * 10_000,
         "gradio", "model", "public", "private", "auto", "accepted", "ann", "closed", "upload", "download", "sha256", "base64", "https://x", "javascript:alert(1)", "1/0", "* * * * *", "cpu-basic"]
NUMBERS = [0, 1, -1, 2**31, 2**63, 2**64, -2**63 - 1, 10**400, 1.5, 1e308, float("nan"), float("inf"), -0.0]

BODY = dict(name="fresh", type="model", fromRepo="you/open", toRepo="you/other", files=[dict(path="a", size=1, sample="eA==")], operation="upload", objects=[dict(oid="0" * 64, size=3)], transfers=["basic"],
            tag="v2", startingPoint="main", message="x", title="A title", description="x", comment="x", content="x", status="open", user="ann", repository="you/dup", deletions=dict(sha=["0" * 64]), paths=["README.md"],
            target=dict(type="model", name="you/open"), item=dict(type="model", id="you/open"), parts=[dict(partNumber=1, etag="x")], oid="0" * 64, size=3, sdk="static", visibility="public", gated="auto", token="x")

text = st.one_of(st.sampled_from(TEXTS), st.text(max_size=20))
leaf = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), text)
inner = st.sampled_from(["path", "size", "sample", "oid", "sha", "type", "name", "id", "partNumber", "sha256", "key", "value"])
value = st.recursive(leaf, lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(st.one_of(inner, text), v, max_size=3)), max_leaves=6)


def words(pattern, source):
    return sorted({w for found in re.findall(pattern, source) for w in ([found] if isinstance(found, str) else found) if w})


# the words that the handlers look for in a body and in the address, read from their source
SOURCE = {m: inspect.getsource(sys.modules[m]) for m in {f.__module__ for _, _, f in ROUTES}}
FIELDS = {m: words(r"""(?:\.get\(|call\.text\(\w+,\s*|\bd\[)\s*['"](\w+)['"]|['"](\w+)['"] in d\b""", s) or ["x"] for m, s in SOURCE.items()}
QUERIES = words(r"""\bq(?:\.get|\.getlist)?[([]\s*['"]([\w[\]]+)['"]|call\.int\(\s*['"](\w+)['"]""", "".join(SOURCE.values()))


@st.composite
def bodies(draw, f):
    known = FIELDS[f.__module__]
    obj = {k: v for k, v in BODY.items() if k in known and draw(st.booleans())}
    obj |= draw(st.dictionaries(st.sampled_from(known), value, max_size=2))
    data = json.dumps(obj, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    how = draw(st.sampled_from(["plain", "plain", "plain", "list", "cut", "twice", "deep", "huge number", "raw", "lines", "form", "gzip", "packets"]))
    if how == "list":
        return json.dumps([obj]).encode()
    if how == "cut":
        return data[:draw(st.integers(0, len(data)))]
    if how == "twice":
        return data[:-1] + b"," + data[1:] if obj else data
    if how == "deep":
        return b'{"x":' * 50_000 if draw(st.booleans()) else b'{"%s":%s}' % (draw(st.sampled_from(known)).encode(), b"[" * 900 + b"]" * 900)
    if how == "huge number":
        return b'{"%s":%s}' % (draw(st.sampled_from(known)).encode(), b"9" * 5000)
    if how == "raw":
        return draw(st.binary(max_size=200))
    if how == "lines":
        lines = [dict(key="header", value=dict(summary="x"))] + [dict(key=draw(st.sampled_from(["file", "lfsFile", "deletedFile", "deletedFolder", "header", "x"])), value=draw(st.fixed_dictionaries(
            {}, optional=dict(path=text, content=st.one_of(value, st.just("eA==")), encoding=st.one_of(value, st.just("base64")), oid=value, size=value, algo=value)))) for _ in range(draw(st.integers(0, 3)))]
        return "\n".join(map(json.dumps, lines)).encode()
    if how == "form":
        return "&".join(f"{quote(str(k))}={quote(str(v), errors='replace')}" for k, v in obj.items()).encode()
    if how == "gzip":
        return gzip.compress(data)
    if how == "packets":
        return b"".join(b"%04x%s" % (len(p) + 4, p) for p in draw(st.lists(st.sampled_from([b"want " + b"1" * 40, b"0" * 40 + b" " + b"1" * 40 + b" refs/heads/x\0report-status", b"done", b"x" * 50, b"command=ls-refs"]), max_size=4))) + draw(st.sampled_from([b"0000", b"0001", b"0002", b"", b"0000PACK\0\0\0\2\0\0\0\1"]))
    return data


segment = st.one_of(st.sampled_from(SEGMENTS), st.text(max_size=8).map(lambda s: quote(s, safe="", errors="replace")))


def urls(path, hostile):
    """Addresses of a route: for each of its names something right, or something hostile."""
    def one(m):
        good = st.sampled_from(GOOD.get(m[1].split(":")[0], ["x"]))
        return st.one_of(good, segment) if hostile else good
    parts = [one(m) if (m := re.fullmatch(r"\{([\w:]+)\}", p)) else st.just(p) for p in re.split(r"(\{[\w:]+\})", path)]
    queries = st.lists(st.tuples(st.sampled_from(QUERIES), st.one_of(segment, st.sampled_from(["1", "true", "main", "likes", "0", "default", "train"]))), max_size=3)
    return st.tuples(st.tuples(*parts).map("".join), queries.map(lambda q: "?" + "&".join(f"{k}={v}" for k, v in q) if q else "")).map("".join)


HEADERS = [("Range", v) for v in ("bytes=-", "bytes=9-1", "x", "bytes=0-0,2-3", "bytes=" + "9" * 30 + "-", "bytes=-0", "bytes=5-", "bytes=-5", "lines=1-2")]
HEADERS += [("Authorization", v) for v in ("Bearer", "Bearer ", "Bearer wrong", "Basic !!!", "Basic " + base64.b64encode(b"\xff:\xfe").decode(), "Basic eDp5", "x", "", "Bearer " + "x" * 9000, "Digest x", None)]
HEADERS += [("Host", v) for v in ("evil.example", "127.0.0.1", "localhost:99999", "[::1]", "x.localhost", "a@b", "127.0.0.1.evil.example", "")]
HEADERS += [("Cookie", v) for v in ("hub=you:99999999999:00", "hub=::::", "hub=" + "x" * 3000, "hub=\xff", "a;b;c=;=")]
HEADERS += [("Content-Type", v) for v in ("application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain; charset=nonsense", "x")]
HEADERS += [("Content-Encoding", v) for v in ("gzip", "br", "deflate", "gzip, gzip")] + [("If-None-Match", v) for v in ("*", '"x"', "\xff")] + [("Accept", v) for v in ("text/html", "\xff", "*/*")]
HEADERS += [("X-Amzn-Trace-Id", "a\xffb" * 200), ("Git-Protocol", "version=2"), ("Git-Protocol", "version=99\x01"), ("X-Forwarded-Host", "evil.example"), ("Origin", "null"), ("Expect", "100-continue"), ("X-HTTP-Method-Override", "DELETE")]


HANDLERS = list(dict.fromkeys(f for _, _, f in ROUTES))


@pytest.mark.parametrize("f", HANDLERS, ids=lambda f: f"{f.__module__.split('.')[-1]}.{f.__name__}")
def test_every_route_with_anything(target, f):
    fill(target)
    mine = [(method, path) for method, path, g in ROUTES if g is f]

    @examples(30)
    @given(st.data())
    def walk(data):
        method, path = data.draw(st.sampled_from(mine))
        hostile = data.draw(st.booleans())
        url, user = data.draw(urls(path, hostile)), data.draw(st.sampled_from(["you", "you", "ann", None])) if hostile else "you"
        body = data.draw(bodies(f)) if method in ("POST", "PUT", "PATCH", "DELETE") else b""
        headers = data.draw(st.lists(st.sampled_from(HEADERS), max_size=1))
        fair(target(method, url, body, headers, user), (method, url, body[:300], headers, user))

    walk()
