"""Hostile requests to every route: a clear 4xx, never a 500, nothing outside the data folder, and the Hub still answers.

The walk reads `all_routes()`, so a route that is added later is walked too. `HFFLOW_FUZZ=n` makes n examples of each test,
from another seed each time; without it the examples are always the same few.
"""
import base64
import gzip
import hashlib
import inspect
import json
import mimetypes
import os
import re
import socket
import sys
from functools import cache
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from urllib.parse import quote

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfflow.localhub.download import media_type
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
        for name, private in (("open", False), ("hidden7", True)):
            api = f"/api/{kind}s/you/{name}"
            if row := t.hub.db.find(kind, f"you/{name}"):  # nobody has deleted it; what its owner may have changed is put back
                if (row.private, row.gated) == (private, None):
                    continue
                assert t("PUT", f"{api}/settings", json.dumps(dict(visibility="private" if private else "public", gated=False)).encode())[0] == 200
                continue
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
        first = "/api/viewer/first-rows?dataset=you%2Fopen&config=default&split=train"
        assert t("GET", first)[0] == 200  # the viewer's libraries are large, and come with its first answer
        t.size = psutil.Process().memory_info().rss
        outside = look(folder)
        yield t
        assert look(folder) == outside, "something was written outside the data folder"
        fill(t)
        assert t("GET", "/api/models/you/hidden7")[0] == 200


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
GOOD = {"kind": ["model"], "ns": ["you"], "name": ["open", "open", "hidden7"], "rev": ["main", "dev", "v1", "refs%2Fpr%2F2"], "path": ["README.md", "d", "data.csv", "d/e/f.json"],
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


# strategies are made once: hypothesis checks each anew
strange = {m: st.dictionaries(st.sampled_from(known), value, max_size=2) for m, known in FIELDS.items()}
line = st.tuples(st.sampled_from(["file", "lfsFile", "deletedFile", "deletedFolder", "header", "x"]), st.fixed_dictionaries(
    {}, optional=dict(path=text, content=st.one_of(value, st.just("eA==")), encoding=st.one_of(value, st.just("base64")), oid=value, size=value, algo=value)))
lines = st.lists(line, max_size=3)


@cache
@st.composite
def bodies(draw, f):
    known = FIELDS[f.__module__]
    obj = {k: v for k, v in BODY.items() if k in known and draw(st.booleans())}
    obj |= draw(strange[f.__module__])
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
        first = dict(key="header", value=dict(summary="x"))
        return "\n".join(map(json.dumps, [first, *[dict(key=k, value=v) for k, v in draw(lines)]])).encode()
    if how == "form":
        return "&".join(f"{quote(str(k))}={quote(str(v), errors='replace')}" for k, v in obj.items()).encode()
    if how == "gzip":
        return gzip.compress(data)
    if how == "packets":
        return b"".join(b"%04x%s" % (len(p) + 4, p) for p in draw(st.lists(st.sampled_from([b"want " + b"1" * 40, b"0" * 40 + b" " + b"1" * 40 + b" refs/heads/x\0report-status", b"done", b"x" * 50, b"command=ls-refs"]), max_size=4))) + draw(st.sampled_from([b"0000", b"0001", b"0002", b"", b"0000PACK\0\0\0\2\0\0\0\1"]))
    return data


segment = st.one_of(st.sampled_from(SEGMENTS), st.text(max_size=8).map(lambda s: quote(s, safe="", errors="replace")))


@cache
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


one_header = st.lists(st.sampled_from(HEADERS), max_size=1)
HANDLERS = list(dict.fromkeys(f for _, _, f in ROUTES))


@pytest.mark.parametrize("f", HANDLERS, ids=lambda f: f"{f.__module__.split('.')[-1]}.{f.__name__}")
def test_every_route_with_anything(target, f):
    fill(target)
    mine = [(method, path) for method, path, g in ROUTES if g is f]

    @examples(20)
    @given(st.data())
    def walk(data):
        method, path = data.draw(st.sampled_from(mine))
        hostile = data.draw(st.booleans())
        url, user = data.draw(urls(path, hostile)), data.draw(st.sampled_from(["you", "you", "ann", None])) if hostile else "you"
        body = data.draw(bodies(f)) if method in ("POST", "PUT", "PATCH", "DELETE") else b""
        headers = data.draw(one_header)
        fair(target(method, url, body, headers, user), (method, url, body[:300], headers, user))

    walk()


def fields(f):
    """The words that a handler, or a function of its module that it calls, looks for in a body."""
    known, module, source = FIELDS[f.__module__], sys.modules[f.__module__], inspect.getsource(f)
    source += "".join(inspect.getsource(g) for name in set(re.findall(r"\b(\w+)\(", source)) if inspect.isfunction(g := getattr(module, name, None)))
    return [k for k in known if f"'{k}'" in source or f'"{k}"' in source]


WRONG = [[None], {"a": [1]}, "\ud800", 10**30, "x" * 70_000]


@pytest.mark.parametrize("f", [f for f in HANDLERS if {m for m, _, g in ROUTES if g is f} & {"POST", "PUT", "PATCH", "DELETE"}], ids=lambda f: f"{f.__module__.split('.')[-1]}.{f.__name__}")
def test_each_field_with_the_wrong_type(target, f):
    """A body that is right but for one field."""
    method, path = next((m, p) for m, p, g in ROUTES if g is f and m != "GET")
    fill(target)
    url = re.sub(r"\{([\w:]+)\}", lambda m: GOOD.get(m[1].split(":")[0], ["x"])[0], path)
    known = fields(f)
    for k in known:
        for v in WRONG:
            body = json.dumps({**{k: v for k, v in BODY.items() if k in known}, k: v}).encode()
            fair(target(method, url, body, [("Content-Type", "application/json")]), (method, url, body[:300]))


RAW = [
    b"", b"\r\n\r\n", b"GET", b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", b"BREW /api/models HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET / HTTP/1.1\r\n X: y\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 300_000 + b"\r\n\r\n", b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(5000)) + b"\r\n", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\x00b\r\n\r\n",
    *(b"POST /api/repos/create HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n%s\r\n\r\n{}" % h for h in (
        b"Content-Length: 10", b"Content-Length: -1", b"Content-Length: x", b"Content-Length: " + b"9" * 40, b"Content-Length: 1\r\nContent-Length: 2", b"Content-Length: 99999999999", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip",
        b"Transfer-Encoding: chunked\r\nContent-Length: 2", b"Transfer-Encoding: chunked\r\n\r\nzz", b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n", b"Content-Length: 0")),
    *(b"POST /you/open/git-upload-pack HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n0000" % n for n in (4, 400)),
    b"PUT /lfs/%s?x HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab" % (b"0" * 64),
]


@pytest.mark.parametrize("data", RAW, ids=range(len(RAW)))
def test_what_is_hardly_http(target, data):
    status, _, body = target.raw(data, end=True)
    assert status is None or status < 500 or status == 501, (data[:100], status, body)
    assert target("GET", "/api/whoami-v2")[0] == 200


def test_a_private_repo_is_like_none(target):
    """For whoever may not see it, each call answers for a private repo as for one that is not there, and no list names it."""
    fill(target)
    for method, path, f in ROUTES:
        url = re.sub(r"\{([\w:]+)\}", lambda m: m[0] if m[1] == "name" else GOOD.get(m[1].split(":")[0], ["x"])[0], path)
        known = FIELDS[f.__module__]
        body = json.dumps({k: v for k, v in BODY.items() if k in known}).replace("you/open", "you/{name}").replace("fresh", "you/{name}") if method != "GET" else ""
        if "{name}" not in url and not path.startswith("/api/repos/"):
            assert method != "GET" or all(b"hidden7" not in target(method, url, user=user)[2] for user in ("ann", None)), url
            continue
        for user in ("ann", None):
            answers = []
            for name in ("hidden7", "absent7"):
                status, headers, text = target(method, url.replace("{name}", name), body.replace("{name}", name).encode(), [("Content-Type", "application/json")], user)
                told = {k: v.replace(name, "") for k, v in headers.items() if k not in ("date", "content-length", "x-request-id")}
                answers.append((status, told, re.sub(rb"[0-9a-f]{24}|\d{4}-\d\d-\d\dT[\d:.]+Z|20\d\d", b"", text.replace(name.encode(), b""))))
            assert answers[0] == answers[1], (method, url, user)
            if "{name}" in url and "/{ns}/" in path:
                assert answers[0][0] in (303, 401, 404, 400, 403, 501, 405), (method, url, answers[0][:1])  # a form leads to the login
    assert target("GET", "/api/models/you/hidden7")[0] == 200


def upload(t, data, size=None, oid=None, transfers=("basic",)):
    oid = oid or hashlib.sha256(data).hexdigest()
    batch = dict(operation="upload", transfers=transfers, objects=[dict(oid=oid, size=len(data) if size is None else size)])
    return json.loads(t.post("/you/open.git/info/lfs/objects/batch", batch)[2])["objects"][0]


def test_signed_addresses_hold_for_one_object(target):
    data, other = os.urandom(2000), hashlib.sha256(b"other").hexdigest()
    oid = hashlib.sha256(data).hexdigest()
    href = upload(target, data)["actions"]["upload"]["href"].removeprefix(target.url)
    exp, sig = re.search(r"exp=(\d+)", href)[1], re.search("sig=([0-9a-f]+)", href)[1]
    altered = [href.replace(f"/lfs/{oid}", f"/lfs/{other}"), href.replace(oid, other), href.replace(f"exp={exp}", f"exp={int(exp) + 9}"), href.replace(sig, sig[::-1]), href.replace(f"&sig={sig}", ""), href + "&part=1", href + "&get=1",
               href.replace("size=2000", "size=1"), href.replace(sig, ""), href.split("?")[0], href.replace(f"/lfs/{oid}", f"/lfs/{oid.upper()}"), href + f"&oid={other}"]
    for address in altered:
        assert target("PUT", address, data, user=None)[0] in (400, 403), address
    assert target("GET", href, user=None)[0] == 403 and target.post(href, {}, user=None)[0] == 403  # it is for uploading only
    for wrong in (data[:-1], data + b"x", b"", data[::-1]):
        assert target("PUT", href, wrong, user=None)[0] in (400, 413)
    from hfflow.localhub.signed import sign
    key = target.hub.db.find("model", "you/open").key
    old = sign(target.hub, seconds=-1, key=key, oid=oid, size="2000")
    assert target("PUT", f"/lfs/{oid}?{old}", data, user=None)[0] == 403
    assert target.hub.store.lfs.size(oid) is None and not list(target.hub.store.lfs.tmp.iterdir())
    assert target("PUT", href, data, user=None)[0] == 200
    assert "actions" not in upload(target, data)
    assert upload(target, data, oid=oid.upper())["error"]["code"] == 422


def test_parts_that_are_missing_swapped_or_of_the_wrong_size(target):
    import hfflow.localhub.wire as wire

    old, target.hub.limits = target.hub.limits, wire.Limits(part=1000)
    try:
        data = os.urandom(2500)
        for wrong in ({1, 2}, {2, 3}, {3}, set(), "swapped", "short", "long", "names"):
            up = upload(target, data, transfers=["multipart"])["actions"]["upload"]
            hrefs = {int(k): v.removeprefix(target.url) for k, v in up["header"].items() if k.isdigit()}
            parts = {1: data[:1000], 2: data[1000:2000], 3: data[2000:]}
            if wrong == "swapped":
                parts |= {1: parts[2], 2: parts[1]}
            for i, part in parts.items():
                if isinstance(wrong, str) or i in wrong:
                    body = part[:-1] if wrong == "short" else part + b"x" if wrong == "long" else part
                    assert target("PUT", hrefs[i], body, user=None)[0] in ((400, 413) if wrong in ("short", "long") else (200,))
            named = [dict(partNumber=i, etag="x") for i in ((2, 1, 3) if wrong == "names" else (1, 2, 3))]
            assert target.post(up["href"].removeprefix(target.url), dict(oid="x", parts=named), user=None)[0] == 400, wrong
            assert target.hub.store.lfs.size(hashlib.sha256(data).hexdigest()) is None
            if wrong == "names":
                assert target.post(up["href"].removeprefix(target.url), dict(parts=sorted(named, key=lambda p: p["partNumber"])), user=None)[0] == 200
        assert not list(target.hub.store.lfs.tmp.iterdir())
    finally:
        target.hub.limits = old


class Active(HTMLParser):
    """Finds what a browser would run, or fetch from elsewhere."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = {k: v or "" for k, v in attrs}
        if tag in ("script", "iframe", "object", "embed", "svg", "math", "style", "base", "template", "portal", "applet", "frame"):
            self.found.append(tag)
        self.found += [(tag, k, v) for k, v in attrs.items() if k.startswith("on") or k in ("srcdoc", "formaction", "ping", "background")]
        links = [v for k, v in attrs.items() if k in ("href", "src", "action", "poster", "srcset", "xlink:href", "data")]
        self.found += [(tag, v) for v in links if re.match(r"[\s\x00-\x20]*(javascript|data|vbscript|blob|file)[\s\x00-\x20]*:", v, re.I)]
        if tag in ("img", "video", "audio", "source", "link"):
            self.found += [(tag, v) for v in links if re.match(r"\s*(\w+:)?//", v)]
        if tag == "meta" and "http-equiv" in attrs:
            self.found.append((tag, attrs))


EVIL = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>", "<svg><script>alert(1)</script></svg>", "[x](javascript:alert(1))", "[x](data:text/html,<script>alert(1)</script>)", "![x](https://evil.example/a.png)", "<a href='jAvAsCrIpT:alert(1)'>x</a>",
        "<a href=' javascript:alert(1)'>x</a>", "<a href='java\nscript:alert(1)'>x</a>", "<a href='&#106;avascript:alert(1)'>x</a>", "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>", "<iframe src=https://evil.example></iframe>", "<base href=https://evil.example>",
        "<form action=https://evil.example><button>x</button></form>", "<style>@import 'https://evil.example'</style>", "<div style='background:url(https://evil.example)'>x</div>", "<meta http-equiv=refresh content='0;url=https://evil.example'>", "<!--><script>alert(1)</script>-->",
        "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>", "```html\n<script>alert(1)</script>\n```", "```<script>\nx\n```", "<details open ontoggle=alert(1)>x</details>", "<video src=https://evil.example/v poster=https://evil.example/p></video>", "<a href=vbscript:x>x</a>", "<a href='\x01javascript:alert(1)'>x</a>",
        "<x:script xmlns:x='http://www.w3.org/1999/xhtml'>alert(1)</x:script>", "<![CDATA[<script>alert(1)</script>]]>", "<img src='//evil.example/x'>", "<img src='\\\\evil.example\\x'>", "<img srcset='https://evil.example/x 2x'>", "[a]: javascript:alert(1)\n\n[a]", "<https://x.example/<script>>", "\u202e<b>x", "&lt;script&gt;", "<p id=x class='a b' onclick=x>"]


@pytest.mark.parametrize("where", ["card", "comment", "title", "file name", "file", "commit message", "front matter", "lineage"])
def test_no_script_runs_on_any_page(target, where):
    fill(target)
    api, pages, evil = "/api/models/you/open", ["/you/open", "/you", "/models", "/", "/you/open/commits/main", "/you/open/tree/main", "/search?q=open"], EVIL
    if where == "card":
        ok = [target.post(f"{api}/commit/main", commit_body({"README.md": "\n\n".join(evil).encode(), **{f"cards/{i}/README.md": e.encode() for i, e in enumerate(evil)}}))[0]]
        pages += [f"/you/open/tree/main/cards/{i}" for i in range(len(evil))] + ["/you/open/blob/main/README.md", "/you/open/blob/main/README.md?code=1", "/you/open/commit/main"]
    elif where in ("comment", "title"):
        num = [json.loads(target.post(f"{api}/discussions", dict(title=(e if where == "title" else "A talk")[:190], description=e))[2])["num"] for e in evil]
        pages, ok = [f"/you/open/discussions/{n}" for n in num] + ["/you/open/discussions"], [200]
    elif where == "file name":
        files = {f"names/{i}{e.replace('/', '')}".replace("\\", "").replace("\n", "").replace("\x01", ""): b"x" for i, e in enumerate(evil)}
        ok = [target.post(f"{api}/commit/main", commit_body(files))[0]]
        pages += ["/you/open/tree/main/names", "/you/open/commit/main"] + [f"/you/open/blob/main/{quote(p)}" for p in files]
    elif where == "file":
        ok = [target.post(f"{api}/commit/main", commit_body({f"files/a.{x}": "\n".join(evil).encode() for x in ("html", "svg", "py", "json", "csv", "txt", "ipynb", "xml", "js", "md", "yaml")}))[0]]
        pages = [f"/you/open/blob/main/files/a.{x}" for x in ("html", "svg", "py", "json", "csv", "txt", "ipynb", "xml", "js", "md", "yaml")] + ["/you/open/commit/main"]
    elif where == "commit message":
        ok = [target.post(f"{api}/commit/main", commit_body({"x": e.encode()}).replace(b'"summary": "x"', b'"summary": %s, "description": %s' % ((json.dumps(e).encode(),) * 2)))[0] for e in evil]
        pages += ["/you/open/commit/main"]
    elif where == "front matter":
        front = json.dumps({k: evil for k in ("tags", "datasets", "base_model", "language", "license")} | {k: evil[0] for k in ("library_name", "pipeline_tag", "base_model_relation", "license_name", evil[1])})
        ok = [target.post(f"{api}/commit/main", commit_body({"README.md": f"---\n{front}\n---\n# x".encode(), "config.json": front.encode(), "tokenizer_config.json": json.dumps(dict(mask_token=evil[0])).encode()}))[0]]
    else:
        ok = [target.post(f"{api}/commit/main", commit_body({"lineage.json": json.dumps(dict(inputs=[dict(kind="model", repo_id=e, revision=e) for e in evil], code=dict.fromkeys(evil, evil[0]))).encode()}))[0]]
    assert set(ok) == {200}
    for page in pages:
        status, headers, body = target("GET", page, headers=[("Accept", "text/html")])
        assert status == 200 and headers["content-security-policy"].startswith("default-src 'none'") and "script" not in headers["content-security-policy"], page
        assert headers["x-content-type-options"] == "nosniff" and Active(body.decode()).found == [], page
    for url in (api, f"{api}/discussions/1", f"{api}/commits/main?expand[]=formatted", f"{api}/tree/main?recursive=1"):
        assert target("GET", url)[1]["content-type"] == "application/json"


def test_what_is_uploaded_never_runs_on_this_origin(target):
    """A browser that opens a file finds a type that it does not run, or a sandbox."""
    known = [".html", ".xhtml", ".svg", ".js", ".mjs", ".wasm", ".swf", ".pdf", ".xml", ".xsl", ".htc", ".shtml", ".mht", ".hta", ".manifest", "", ".HTML", ".html.", ".svgz"]
    ends = sorted({*mimetypes.types_map, *known})
    for end in ends:
        type = media_type(f"x{end}").split(";")[0]
        assert not re.search("html|javascript|ecmascript|xml$|pdf|flash|wasm|manifest", type) or type == "image/svg+xml", (end, type)
    one_of_each = {media_type(f"x{e}"): e for e in ends}.values()
    files = {f"types/x{e}": b"<script>alert(1)</script>" for e in {*known, *one_of_each}}
    fill(target)
    assert target.post("/api/models/you/open/commit/main", commit_body(files))[0] == 200
    for path in files:
        for how in ("resolve", "raw"):
            status, headers, _ = target("GET", f"/you/open/{how}/main/{quote(path)}")
            assert status == 200 and headers["content-type"] == media_type(path), path
            assert headers["x-content-type-options"] == "nosniff" and "sandbox" in headers["content-security-policy"] and "allow-" not in headers["content-security-policy"], path


yaml = st.recursive(st.one_of(st.sampled_from(["&a", "*a", "!!python/object:os.system", "!!binary x", "2024-13-45", "1_000", "0o7", "1e999", ".nan", "~", "{", "[", "- ", "? ", ": ", "|", ">", "%YAML 1.1", "---", "...", "'", '"', "\t", "<<: *a", "=", "12:30:45", "0x" + "f" * 500, "9" * 400, "\x85", "\u2028", "\ufeff"]), st.text(max_size=6)),
                    lambda s: st.one_of(st.tuples(st.sampled_from(["tags", "license", "model-index", "datasets", "language", "base_model", "pipeline_tag", "widget", "sdk", "library_name", "configs", "dataset_info"]), s).map(": ".join), st.lists(s, max_size=4).map("\n".join), st.lists(s, max_size=4).map(lambda x: "\n- ".join(["", *x]))), max_leaves=12)


MERGES = "k0: &k0 {a: 1, b: 2}\n" + "\n".join(f"k{i}: &k{i} {{<<: [{','.join([f'*k{i - 1}'] * 10)}]}}" for i in range(1, 9))
ALIASES = "\n".join(f"k{i}: &k{i} [" + ",".join([f"*k{i - 1}"] * 10 if i else ["x"] * 10) + "]" for i in range(12))
HEAVY = ["a: " + "[" * 100_000, "- " * 100_000, "? " * 100_000, "a: &a [*a, *a]", "[" * 900 + "]" * 900, "a: " + "x" * 900_000, "a: 1" + ":1" * 200_000, MERGES, ALIASES]


def card_holds(target, front, kind, words):
    card = f"---\n{front}\n---\n{words}".encode("utf-8", "replace")
    assert target.post(f"/api/{kind}s/you/open/commit/main", commit_body({"README.md": card}))[0] == 200
    for url in (f"/api/{kind}s/you/open", f"/api/{kind}s?full=1&cardData=1&config=1", f"/{'' if kind == 'model' else kind + 's/'}you/open", f"/{kind}s"):
        assert target("GET", url)[0] == 200, (url, card[:200])
    assert target.post("/api/validate-yaml", dict(content=card.decode(), repoType=kind))[0] in (200, 400)


def test_any_card(target):
    fill(target)

    @examples(12)
    @given(yaml, st.sampled_from(["model", "dataset", "space"]), st.text(max_size=40))
    def check(front, kind, words):
        card_holds(target, front, kind, words)

    check()


@pytest.mark.parametrize("front", HEAVY, ids=lambda f: f[:12])
def test_a_card_that_is_heavy_to_read(target, front):
    """Few bytes that would become a deep tree (which ends the process), or much work."""
    fill(target)
    for kind in ("model", "dataset", "space"):
        card_holds(target, front, kind, "<div>" * 20_000)


def test_memory_stays_bounded(target):
    """After all that, and after bodies that promise or hold far too much."""
    for path in ("/api/repos/create", "/api/models/you/open/preupload/main", "/you/open.git/info/lfs/objects/batch"):
        assert target("POST", path, b"{", [("Content-Length", str(10**12))])[0] == 413
        assert target("POST", path, b'{"x":"' + b"x" * (33 << 20) + b'"}')[0] in (413, None)
        assert target("POST", path, b"[" * (30 << 20))[0] == 400
    bomb = gzip.compress(bytes(200 << 20), 1)
    assert target("POST", "/you/open/git-upload-pack", bomb, [("Content-Encoding", "gzip")])[0] == 413
    assert target("GET", "/api/whoami-v2")[0] == 200
    assert psutil.Process().memory_info().rss - target.size < 400e6
