"""The embedded Hub beside the disk, nginx, git and SQLite of the same machine.

    python benchmarks/hub.py [--quick | --smoke] [--only WORD] [--folder DIR] [--json FILE]

Ours and the peer's are measured in turn, so that both see the same machine: each figure is the median of several rounds, and the ratio is the
median of the rounds' ratios. A ratio above 1 means ours is better. Clients, server and peer share the machine's cores. The official client has
Xet off; "raw" means a client that only moves bytes (`sendfile`, `recv`), which shows the server rather than the client.

The large file is made on the fly and cannot be compressed: 5 GB, 200 MB with --quick. Up to three copies of it are on the disk at a time (the
file, what the Hub stored, a download or a copy), so the full run needs 16 GB free in DIR, --quick 1 GB; all of it is deleted at the end. The
default DIR is the system's folder for temporary files: name another where that one lies in memory. nginx is measured where it is installed
(Debian: apt-get install nginx-light).
"""
import argparse
import base64
import json
import os
import platform
import random
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from hashlib import sha256
from http.client import HTTPConnection
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

MB = 1 << 20
TOKEN = "token-of-the-benchmark"
COPY = "cp + sync (fsync) + sha256sum"
FULL = dict(large=5_000_000_000, rounds=3, commit=10_000, files=100_000, repos=10_000, searches=500, clients=32, seconds=10, starts=11)
QUICK = FULL | dict(large=200_000_000, commit=2_000, files=10_000, searches=200, seconds=1, starts=5)
SMOKE = dict(large=1_000_000, rounds=1, commit=20, files=200, repos=50, searches=10, clients=4, seconds=.2, starts=1)


# Measuring

def timed(f, *args):
    start = time.perf_counter()
    f(*args)
    return time.perf_counter() - start


def shell(*lines):
    "Run commands one after another; any failure is an error."
    p = subprocess.run(["sh", "-ec", "\n".join(lines)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if p.returncode: raise SystemExit(f"{lines[0]}: {p.stderr}")


def row(case, ours, peer, name, unit, more_is_better=False):
    "One row from the figures of all rounds; `peer` is None where there is nothing to compare with."
    ratio = statistics.median(a / b if more_is_better else b / a for a, b in zip(ours, peer)) if peer else None
    three = lambda x: float(f"{x:.3g}")
    return dict(case=case, ours=three(statistics.median(ours)), peer=three(statistics.median(peer)) if peer else None, peer_name=name,
                ratio=ratio and three(ratio), unit=unit)


def rate(case, size, seconds, peer, name):
    return row(case, [size / 1e6 / s for s in seconds], [size / 1e6 / s for s in peer], name, "MB/s", more_is_better=True)


def quantile(values, q): return sorted(values)[min(int(len(values) * q), len(values) - 1)]


# A Hub, nginx, and a client that only moves bytes

@contextmanager
def hub(data):
    "A Hub in a process of its own, as users run it, and the official client set to it; its data folder is deleted at the end."
    call = [sys.executable, "-m", "hfflow.localhub", "--data", str(data), "--user", f"you:{TOKEN}"]
    p = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    try:
        line = p.stdout.readline()
        if not line.startswith("Hub at "): raise SystemExit(f"the Hub did not start: {line!r}")
        from huggingface_hub import HfApi
        url = line.split()[-1]
        api = HfApi(endpoint=url, token=TOKEN)
        api.whoami()
        yield SimpleNamespace(url=url, api=api, pid=p.pid)
    finally:
        p.terminate()
        p.wait(20)
        p.stdout.close()
        shutil.rmtree(data)


@contextmanager
def nginx(folder):
    "nginx on a folder, as Debian sets it up but without its log; yields its address, or None where it is not installed."
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if not program: yield None; return
    with tempfile.TemporaryDirectory() as d:
        port = free_port()
        user = "user root;" if os.geteuid() == 0 else ""
        temp = " ".join(f"{k}_temp_path {d}/{k};" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        Path(d, "conf").write_text(f"""{user} worker_processes auto; pid {d}/pid; error_log {d}/log; daemon off; events {{ worker_connections 768; }}
            http {{ sendfile on; tcp_nopush on; access_log off; {temp} server {{ listen 127.0.0.1:{port}; root {folder}; }} }}""")
        p = subprocess.Popen([program, "-e", f"{d}/log", "-c", f"{d}/conf"])
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            p.terminate()
            p.wait(20)


def free_port():
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def connect(url):
    at = urlsplit(url)
    return HTTPConnection(at.hostname, at.port, timeout=600)


def wait_for(port, path="/"):
    "Wait for the first answer."
    for _ in range(20_000):
        try: return ask(f"http://127.0.0.1:{port}", "GET", path)
        except (ConnectionError, TimeoutError): time.sleep(.001)
    raise SystemExit(f"no answer on port {port}")


def ask(url, method, path, body=None, kind="application/json", c=None):
    "One request with a token; returns status and body."
    c = c or connect(url)
    c.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **({"Content-Type": kind} if body else {})})
    r = c.getresponse()
    return r.status, r.read()


def send(url, path, start=0, count=None):
    "PUT a file, or a piece of it, without copying it into this process."
    count = count or os.path.getsize(path)
    at, c = urlsplit(url), connect(url)
    c.putrequest("PUT", f"{at.path}?{at.query}")
    c.putheader("Content-Length", str(count))
    c.endheaders()
    with open(path, "rb") as f: c.sock.sendfile(f, start, count)
    r = c.getresponse()
    if r.status != 200: raise SystemExit(f"PUT answered {r.status}: {r.read()[:300]}")
    c.close()
    return r.headers["ETag"]


def fetch(url, start, size, to=os.devnull):
    "GET a file from its byte `start` on, into another file."
    at, c, n = urlsplit(url), connect(url), 0
    c.request("GET", at.path, headers={"Authorization": f"Bearer {TOKEN}", **({"Range": f"bytes={start}-"} if start else {})})
    r, buf = c.getresponse(), memoryview(bytearray(MB))
    with open(to, "wb", buffering=0) as f:
        while got := r.readinto(buf):
            f.write(buf[:got])
            n += got
    if r.status != (206 if start else 200) or n != size - start: raise SystemExit(f"GET answered {r.status} with {n} bytes")
    c.close()


class Memory:
    "The greatest growth of a process's resident memory, in MB; Linux tells it."
    def __init__(self, pid):
        self.status, reset = Path(f"/proc/{pid}/status"), Path(f"/proc/{pid}/clear_refs")
        if reset.exists(): reset.write_text("5")           # forget the peak so far
        self.before = self.read("VmRSS")

    def read(self, key):
        return int(re.search(rf"{key}:\s+(\d+) kB", self.status.read_text())[1]) / 1024 if self.status.exists() else 0

    def growth(self): return max(self.read("VmHWM") - self.before, .1) if self.status.exists() else None


# The cases

def startup(work, at):
    "Start-up to the first answer, on an empty data folder."
    ours, peer = [], []
    for _ in range(at.starts):
        for times, call in ((ours, ["-m", "hfflow.localhub", "--data", str(work / "start"), "--port"]), (peer, ["-m", "http.server", "-b", "127.0.0.1"])):
            port = free_port()
            start = time.perf_counter()
            p = subprocess.Popen([sys.executable, *call, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=work)
            wait_for(port, "/api/models" if times is ours else "/")
            times.append(time.perf_counter() - start)
            p.terminate()
            p.wait(20)
        shutil.rmtree(work / "start")
    yield row("start-up to the first answer", ours, peer, "python -m http.server", "s")


def fill(path, size):
    with open(path, "wb") as f:
        for start in range(0, size, 4 * MB): f.write(os.urandom(min(4 * MB, size - start)))


def renew(path):
    "Change the first bytes, so that no server has seen the file; returns its sha256."
    h = sha256()
    with open(path, "r+b") as f:
        f.write(os.urandom(32))
        f.flush()
        os.fsync(f.fileno())
        f.seek(0)
        while data := f.read(4 * MB): h.update(data)
    return h.hexdigest()


def lfs_action(h, oid, size, transfer):
    body = json.dumps(dict(operation="upload", transfers=["basic", transfer], objects=[dict(oid=oid, size=size)]))
    status, answer = ask(h.url, "POST", "/you/r.git/info/lfs/objects/batch", body)
    return json.loads(answer)["objects"][0]["actions"]["upload"]


def put_whole(h, path, oid):
    send(lfs_action(h, oid, os.path.getsize(path), "basic")["href"], path)


def put_parts(h, path, oid):
    size = os.path.getsize(path)
    up = lfs_action(h, oid, size, "multipart")
    if "chunk_size" not in up.get("header", {}): return send(up["href"], path)
    step = int(up["header"]["chunk_size"])
    tags = [send(up["header"][str(i + 1)], path, i * step, min(step, size - i * step)) for i in range(-(-size // step))]
    done = urlsplit(up["href"])
    parts = [dict(partNumber=i, etag=t) for i, t in enumerate(tags, 1)]
    status, answer = ask(h.url, "POST", f"{done.path}?{done.query}", json.dumps(dict(oid=oid, parts=parts)))
    if status != 200: raise SystemExit(f"the parts were refused: {answer[:300]}")


def upload_client(h, path, oid): h.api.upload_file(path_or_fileobj=str(path), path_in_repo="big.bin", repo_id="you/r")


def transfer(work, at):
    "One large file up and down."
    size, big, copy = at.large, work / "big.bin", work / "copy"
    fill(big, size)
    ways = {"raw, one PUT (LFS basic)": put_whole, "raw, PUTs of 64 MiB (LFS multipart)": put_parts, "HfApi.upload_file": upload_client}
    up, copies = {w: [] for w in ways}, {w: [] for w in ways}
    down, peers, grown = {}, {}, {"upload": [], "download": []}
    with nginx(work) as other:
        for _ in range(at.rounds):
            for way, f in ways.items():
                oid = renew(big)
                copies[way].append(timed(copied, big, copy))
                copy.unlink()
                with hub(work / "hub") as h:
                    h.api.create_repo("you/r")
                    memory = Memory(h.pid)
                    up[way].append(timed(f, h, big, oid))
                    grown["upload"].append(memory.growth())
                    if f is upload_client: down_once(h, work, at, other, down, peers, grown["download"])
    for w in ways: yield rate(f"upload, {w}", size, up[w], copies[w], COPY)
    for case, times in down.items():
        if case in peers: yield rate(f"download, {case}", size // 2 if "Range" in case else size, times, *peers[case])
    for way, values in grown.items():
        if values[0]: yield row(f"server memory added by the {way}", [max(values)], [100], "the limit", "MB")
    big.unlink()


def copied(file, to): shell(f"cp {file} {to}", f"sync {to}", f"sha256sum {to}")


def down_once(h, work, at, other, down, peers, grown):
    "One round of downloads, each beside its peer."
    from huggingface_hub.file_download import http_get
    size, big, copy, to = at.large, work / "big.bin", work / "copy", work / "down"
    url, path = f"{h.url}/you/r/resolve/main/big.bin", f"{other}/big.bin"
    def official(url):
        with open(to, "wb") as f: http_get(url, f, headers={"Authorization": f"Bearer {TOKEN}"}, expected_size=size)
    def both(case, ours, peer, name):
        down.setdefault(case, []).append(timed(*ours))
        if not to.exists() or to.stat().st_size == size: to.unlink(missing_ok=True)
        else: raise SystemExit(f"{case}: the file is not whole")
        if peer: peers.setdefault(case, ([], name))[0].append(timed(*peer))
        for f in (to, copy): f.unlink(missing_ok=True)
    memory = Memory(h.pid)
    both("raw", (fetch, url, 0, size), other and (fetch, path, 0, size), "nginx")
    both("raw, second half (Range)", (fetch, url, size // 2, size), other and (fetch, path, size // 2, size), "nginx")
    both("raw, to a file + sync + sha256sum", (lambda: (fetch(url, 0, size, to), shell(f"sync {to}", f"sha256sum {to}")),), (copied, big, copy), COPY)
    both("the official client's http_get", (official, url), other and (official, path), "the same from nginx")
    both("http_get, + sync + sha256sum", (lambda: (official(url), shell(f"sync {to}", f"sha256sum {to}")),), (copied, big, copy), COPY)
    grown.append(memory.growth())


def small_files(n, seed):
    "Text files of some hundred bytes, a hundred to a folder."
    r = random.Random(seed)
    return {f"data/{i // 100:04}/file-{i:06}.txt": " ".join(str(r.random()) for _ in range(r.randint(5, 60))).encode() for i in range(n)}


def raw_commit(h, repo, files):
    "The commit request alone, as bytes; returns a function that sends it."
    lines = [dict(key="header", value=dict(summary="files"))]
    lines += [dict(key="file", value=dict(path=p, content=base64.b64encode(b).decode(), encoding="base64")) for p, b in files.items()]
    body = "\n".join(map(json.dumps, lines)).encode()

    def go():
        status, answer = ask(h.url, "POST", f"/api/models/{repo}/commit/main", body, "application/x-ndjson")
        if status != 200: raise SystemExit(f"the commit was refused: {answer[:300]}")
    return go


def commit(work, at):
    "Many small files in one commit."
    from huggingface_hub import CommitOperationAdd
    client, server, git = [], [], []
    with hub(work / "hub") as h:
        for i in range(at.rounds):
            files, tree = small_files(at.commit, i), work / "tree"
            for p, b in files.items():
                (tree / p).parent.mkdir(parents=True, exist_ok=True)
                (tree / p).write_bytes(b)
            shell(f"git init -q {tree}")
            git.append(timed(shell, f"cd {tree}", "git add -A", "git -c user.name=you -c user.email=you@localhost -c gc.auto=0 commit -qm files"))
            shutil.rmtree(tree)
            h.api.create_repo(f"you/c{i}"), h.api.create_repo(f"you/s{i}")
            ops = [CommitOperationAdd(p, b) for p, b in files.items()]
            client.append(timed(partial(h.api.create_commit, f"you/c{i}", ops, commit_message="files")))
            server.append(timed(raw_commit(h, f"you/s{i}", files)))
    name = "git add -A && git commit"
    yield row(f"commit of {at.commit:,} files, HfApi.create_commit", client, git, name, "s")
    yield row(f"commit of {at.commit:,} files, the server's part (the request alone)", server, git, name, "s")


def listing(work, at):
    "All files of a large repo, whose history has ten commits."
    ours, peer, expand, log = [], [], [], []
    with hub(work / "hub") as h:
        h.api.create_repo("you/many")
        files = list(small_files(at.files, 0).items())
        for k in range(10): raw_commit(h, "you/many", dict(files[k::10]))()
        clone = work / "clone.git"
        shell(f"git -c http.extraHeader='Authorization: Bearer {TOKEN}' clone -q --bare {h.url}/you/many {clone}")
        for _ in range(at.rounds):
            ours.append(timed(lambda: count(h.api.list_repo_files("you/many"), at.files)))
            peer.append(timed(shell, f"git -C {clone} ls-tree -r -l main"))
            expand.append(timed(lambda: count(h.api.list_repo_tree("you/many", recursive=True, expand=True), at.files)))
            log.append(timed(shell, f"git -C {clone} ls-tree -r -l main", f"git -C {clone} log --name-only --format='%H %ct %s' main"))
        shutil.rmtree(clone)
    yield row(f"list {at.files:,} files, list_repo_files", ours, peer, "git ls-tree -r -l", "s")
    yield row(f"list {at.files:,} files with last commits, list_repo_tree(expand=True)", expand, log,
              "git ls-tree -r -l; git log --name-only", "s")


def count(it, least):
    if sum(1 for _ in it) < least: raise SystemExit("files are missing from the list")


WORDS = "bert gpt llama qwen mistral tiny base large chat code vision audio speech math news legal health polish german mini".split()
TASKS = "text-generation text-classification fill-mask translation summarization image-classification".split()
LIBS = "transformers diffusers peft sentence-transformers timm".split()


def many_repos(data, n):
    "Enter repos in a Hub's database; they have no git repositories, which a search does not open."
    from hfflow.localhub.wire import Hub
    db, r = Hub(data).db, random.Random(0)
    db.conn.execute("PRAGMA synchronous=OFF")              # while the folder is made, not while it is measured
    db.add_user("you")
    for i in range(n):
        key, task, lib = f"{i:024x}", r.choice(TASKS), r.choice(LIBS)
        db.add_repo(key, "model", f"{r.choice(WORDS)}-lab/{r.choice(WORDS)}-{r.choice(WORDS)}-{i}", False)
        tags = [lib, task, f"license:{r.choice(('mit', 'apache-2.0'))}", f"language:{r.choice(('en', 'de', 'pl'))}", "region:us"]
        card = dict(license="mit", tags=tags, model_name=f"Model {i}", description="words " * 20)
        db.set_index(key, f"{i:040x}", 1.7e9 + i, dict(tags=tags, cardData=card, library_name=lib, pipeline_tag=task, usedStorage=i))
        db.set_repo(key, likes=r.randint(0, 999), downloads=r.randint(0, 99_999))
    db.conn.close()


def search(work, at):
    "Searches as the official client sends them, one after another."
    many_repos(work / "hub", at.repos)
    sorts = ("last_modified", "created_at", "downloads", "likes", None)
    ours, peer, r = [], [], random.Random(1)
    with hub(work / "hub") as h:
        db = sqlite3.connect(work / "hub" / "hub.sqlite3")
        sql = "SELECT * FROM repos WHERE kind='model' AND id LIKE ? ORDER BY likes DESC LIMIT 20"
        for _ in range(at.searches):
            word, tag = r.choice(WORDS), r.choice(TASKS + LIBS)
            ours.append(1000 * timed(lambda: list(h.api.list_models(search=word, filter=tag, sort=r.choice(sorts), limit=20))))
            peer.append(1000 * timed(lambda: db.execute(sql, (f"%{word}%",)).fetchall()))
        db.close()
    name = "one LIKE scan with sqlite3, no HTTP"
    for q in (.5, .99): yield row(f"search {at.repos:,} repos, list_models, p{q * 100:.0f}", [quantile(ours, q)], [quantile(peer, q)], name, "ms")


def load(url, threads, seconds, requests):
    "Send requests from several threads, each on a connection of its own; returns the milliseconds of each, and how many went wrong."
    def one(seed):
        r, c, times, wrong, end = random.Random(seed), connect(url), [], 0, time.perf_counter() + seconds
        c.connect()
        while (start := time.perf_counter()) < end:
            weights, calls = zip(*requests)
            method, path, body = r.choices(calls, weights)[0]
            fill = dict(n=r.randint(0, 9), text=base64.b64encode(r.randbytes(300)).decode())
            wrong += ask(url, method, path % fill, body and body % fill, "application/x-ndjson", c)[0] != 200
            times.append(1000 * (time.perf_counter() - start))
        c.close()
        return times, wrong
    with ThreadPoolExecutor(threads) as pool: got = list(pool.map(one, [os.getpid() * 1000 + i for i in range(threads)]))
    return sum((t for t, _ in got), []), sum(w for _, w in got)


def crowd(pool, url, n, seconds, requests):
    "`n` clients in up to four processes; returns requests per second, milliseconds and errors."
    k = min(n, 4)
    got = [f.result() for f in [pool.submit(load, url, n // k, seconds, requests) for _ in range(k)]]
    times = sum((t for t, _ in got), [])
    return len(times) / seconds, times, sum(w for _, w in got)


def clients(work, at):
    "Many clients at once."
    small, medium, n = b"some text\n" * 100, os.urandom(MB), at.clients
    (work / "small.txt").write_bytes(small)
    line = '{"key":"header","value":{"summary":"s"}}\n{"key":"file","value":{"path":"notes/%(n)s.txt","content":"%(text)s","encoding":"base64"}}\n'
    mix = [(60, ("GET", "/you/m/resolve/main/small.txt", None)), (15, ("GET", "/you/m/resolve/main/medium.bin", None)),
           (20, ("GET", "/api/models/you/m", None)), (5, ("POST", "/api/models/you/notes%(n)s/commit/main", line))]
    rates, ones, gets, theirs, slow, slow1, wrong = [], [], [], [], [], [], 0
    with hub(work / "hub") as h, nginx(work) as other, ProcessPoolExecutor(4) as pool:
        for name in ("m", *(f"notes{i}" for i in range(10))): h.api.create_repo(f"you/{name}")
        for path, b in (("small.txt", small), ("medium.bin", medium)): h.api.upload_file(path_or_fileobj=b, path_in_repo=path, repo_id="you/m")
        for _ in range(at.rounds):
            for k, rs, ss in ((n, rates, slow), (1, ones, slow1)):
                per_second, times, bad = crowd(pool, h.url, k, at.seconds, mix)
                rs.append(per_second), ss.append(quantile(times, .99))
                wrong += bad
            for url, path, rs in ((h.url, "/you/m/resolve/main/small.txt", gets), (other, "/small.txt", theirs)):
                if url: rs.append(crowd(pool, url, n, at.seconds, [(1, ("GET", path, None))])[0])
    what = f"{n} clients: 60 % small GETs, 15 % of 1 MB, 20 % info, 5 % commits"
    yield row(what, rates, ones, "1 client", "requests/s", more_is_better=True)
    yield row(f"{n} clients, the same, p99", slow, slow1, "1 client", "ms")
    yield row(f"{n} clients, the same, errors", [wrong], None, None, "errors")
    yield row(f"{n} clients, small GETs", gets, theirs, "nginx" if theirs else None, "requests/s", more_is_better=True)


CASES = dict(startup=startup, transfer=transfer, commit=commit, listing=listing, search=search, clients=clients)


# The machine

def first_line(*call):
    try: out = subprocess.run(call, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError): return None
    return (out.stdout or out.stderr).splitlines()[0]


def machine(folder):
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1] if Path("/proc/cpuinfo").exists() else platform.processor()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    disk = first_line("findmnt", "-no", "FSTYPE", "-T", str(folder)) or "unknown"
    return f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB, {disk}, {platform.system()} {platform.release()}"


def versions():
    d = dict(Python=platform.python_version(), SQLite=sqlite3.sqlite_version)
    for p in ("hfflow", "huggingface_hub", "uvicorn", "httptools", "uvloop", "starlette", "pygit2"):
        try: d[p] = version(p)
        except ModuleNotFoundError: d[p] = None
    for p, call in dict(git=("git", "--version"), nginx=(shutil.which("nginx") or "/usr/sbin/nginx", "-v")).items():
        d[p] = (first_line(*call) or "").replace("nginx version: nginx/", "").replace("git version ", "") or None
    return d


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = p.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="smaller sizes: within two minutes on two cores")
    size.add_argument("--smoke", action="store_true", help="tiny sizes, whose figures say nothing: does the script run?")
    p.add_argument("--only", metavar="WORD", action="append", choices=list(CASES), help=f"only this of {', '.join(CASES)}; may be repeated")
    p.add_argument("--folder", metavar="DIR", help="where the data lie while they are needed (default: the system's temporary folder)")
    p.add_argument("--json", metavar="FILE", help="also write the rows to this file, each with date, machine and versions")
    args = p.parse_args()
    at = SimpleNamespace(**(SMOKE if args.smoke else QUICK if args.quick else FULL))
    with tempfile.TemporaryDirectory(prefix="hub-benchmark-", dir=args.folder) as d:
        work = Path(d)
        need = 3 * at.large + 1e9 * (at is not SMOKE)
        if shutil.disk_usage(work).free < need: raise SystemExit(f"{work} has less than the {need / 1e9:.1f} GB free that this run needs")
        os.environ.update(HF_HOME=str(work / "home"), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_TELEMETRY="1",
                          HF_HUB_DISABLE_UPDATE_CHECK="1", NO_PROXY="127.0.0.1")   # before huggingface_hub is imported
        facts = dict(date=datetime.now(timezone.utc).strftime("%Y-%m-%d"), machine=machine(work), versions=versions())
        print(facts["date"], facts["machine"], f"load {os.getloadavg()[0]:.1f}", sep=" | ")
        print(", ".join(f"{k} {v}" for k, v in facts["versions"].items()))
        if not facts["versions"]["nginx"]: print("nginx is not installed: its rows are left out")
        print(f"{'case':<70} {'ours':>8} {'peer':>8} {'ratio':>6}  unit        peer")
        rows, start = [], time.perf_counter()
        for name in args.only or CASES:
            for r in CASES[name](work, at):
                rows.append(r | facts)
                show = lambda x: "-" if x is None else f"{x:g}"
                print(f"{r['case']:<70} {show(r['ours']):>8} {show(r['peer']):>8} {show(r['ratio']):>6}  {r['unit']:<11} {r['peer_name'] or '-'}", flush=True)
        print(f"{time.perf_counter() - start:.0f} s, load {os.getloadavg()[0]:.1f}")
    if args.json: Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
