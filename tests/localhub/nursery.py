"""A process that has imported everything and forks Hubs, so that hundreds of them can be killed in a minute.

A forked Hub differs from `python -m hfflow.localhub` only in what it has imported before; files, locks and sockets are its own.
One that is `doomed` counts the steps of a request that could leave something half done: asked by `X-Die-After: n` it kills itself
after the n-th, and asked by `X-Scout` it tells in `X-Steps` after which of them its data folder was another than before.
"""
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path

from hub_process import TOKENS

# what changes files: calls of the operating system, SQLite and git
STEPS = {"fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "fork_exec", "execute", "executemany", "set_target", "create_commit", "create_blob",
         "create_tag", "write", "delete", "create_reference_direct", "git_packbuilder_write", "sendfile"}


class Doom:
    """Kills this process after a given number of steps of one request."""

    def __init__(self, app, data):
        self.app, self.data, self.on, self.busy = app, data, False, {}

    async def __call__(self, scope, receive, send):
        headers = dict(scope["headers"])
        self.scout, self.end = b"x-scout" in headers, int(headers.get(b"x-die-after", -1))
        self.n, self.found, self.face = 0, [], self.look() if self.scout else None

        async def tell(message):
            self.on = False
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-steps", json.dumps(self.found).encode())]
            await send(message)

        self.on = self.scout or self.end >= 0
        await self.app(scope, receive, tell)

    def look(self):
        """All files but temporary ones."""
        return sorted((f, os.stat(f).st_size, os.stat(f).st_mtime_ns) for d, _, names in os.walk(self.data) for f in (os.path.join(d, n) for n in names) if "/lfs/tmp/" not in f)

    def profile(self, frame, event, f):
        if event != "c_return" or not self.on or f.__name__ not in STEPS:
            return
        if f.__name__.startswith("execute"):  # a SELECT outside a transaction changes nothing
            db = getattr(f.__self__, "connection", f.__self__)
            was, self.busy[id(db)] = self.busy.get(id(db)), db.in_transaction
            if not (was or db.in_transaction):
                return
        self.n += 1
        if self.scout:
            before, self.face = self.face, self.look()
            self.found += [self.n] * (before != self.face)
        if self.n == self.end:
            os.kill(os.getpid(), signal.SIGKILL)


def doom(app, data):
    res = Doom(app, data)
    threading.setprofile(res.profile)
    sys.setprofile(res.profile)
    return res


def until_abandoned():
    """End a Hub whose test has gone without killing it."""
    poll = select.poll()
    poll.register(0, 0)  # no input, only its end
    poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)


def nurse():
    import hfflow.localhub.__main__ as main
    import hfflow.localhub.render  # noqa: F401
    from hfflow.localhub.server import running
    from hfflow.localhub.wire import Limits
    import uvicorn  # noqa: F401
    import uvicorn.loops.auto  # noqa: F401
    import uvicorn.protocols.http.auto  # noqa: F401

    main.open_hub = partial(main.open_hub, limits=Limits(part=1 << 20))
    make_app = main.make_app
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "hub") as (url, _):  # imports what a first answer needs
        urllib.request.urlopen(f"{url}/api/models").read()
    for line in sys.stdin:
        doomed, *args = json.loads(line)
        pid = os.fork()
        if not pid:
            threading.Thread(target=until_abandoned, daemon=True).start()
            print(os.getpid(), flush=True)
            if doomed:
                main.make_app = lambda *a: doom(make_app(*a), args[1])
            os._exit(main.main(args))
        os.waitpid(pid, 0)  # until then its number is nobody else's
        print("dead", flush=True)


class Nursery:
    """Starts Hubs, one at a time, and kills them."""

    def __init__(self):
        self.data, self.pid, self.url, self.starts = None, None, None, []
        self.users = [x for name, token in TOKENS.items() for x in ("--user", f"{name}:{token}")]
        env = os.environ | dict(PYTHONPATH=os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def start(self, data=None, doomed=False):
        """Start a Hub, on the same folder as before where none is named, and wait for its first answer."""
        self.data, t = Path(data or self.data), time.time()
        self.process.stdin.write(json.dumps([doomed, "--data", str(self.data), *self.users]) + "\n")
        self.process.stdin.flush()
        self.pid = int(self.process.stdout.readline())
        line = self.process.stdout.readline()
        assert line.startswith("Hub at http://"), line
        self.url = line.split()[-1]
        assert Client(self)("GET", "/api/whoami-v2")[0] == 200
        self.starts.append(time.time() - t)

    def wait(self):
        """Wait until the Hub is dead."""
        assert self.process.stdout.readline() == "dead\n"
        self.pid = None

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def close(self):
        if self.pid:
            self.kill()
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Client:
    """Raw HTTP with little overhead; `Dead` where no answer comes."""

    class Dead(Exception):
        pass

    def __init__(self, nursery, user="you"):
        self.nursery, self.token, self.conn, self.url = nursery, TOKENS[user], None, None

    def __call__(self, method, path, body=None, **headers):
        if self.url != self.nursery.url:
            self.close()
            self.url = self.nursery.url
            self.conn = http.client.HTTPConnection(*self.url.split("/")[2].split(":"), timeout=30)
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        headers = {k.replace("_", "-"): v for k, v in headers.items()}
        try:
            self.conn.request(method, path.removeprefix(self.url), body, {"Authorization": f"Bearer {self.token}", **headers})
            if self.conn.sock:
                self.conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            r = self.conn.getresponse()
            data = r.read()
        except (OSError, http.client.HTTPException) as e:
            self.close()
            raise self.Dead from e
        self.steps = r.headers.get("x-steps")
        return r.status, json.loads(data) if "json" in r.headers.get("content-type", "") else data

    def close(self):
        if self.conn:
            self.conn.close()
        self.conn = self.url = None


if __name__ == "__main__":
    nurse()
