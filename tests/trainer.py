"""A process that has imported everything and forks trainings, so that many of them can be killed in a minute.

It reads a JSON object a line: where to train, with which settings, and when the child shall die: `after` so many seconds of
training, or with the n-th of the `calls` that change files. It answers how the child ended, its seconds and its calls.
"""
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

# calls of the operating system, and of safetensors, that change files
CALLS = {"fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "write", "open", "serialize_file"}


class Nursery:
    """The parent, seen from a test."""

    def __init__(self):
        here = Path(__file__).parent
        env = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
        self.parent = subprocess.Popen([sys.executable, __file__], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def train(self, base, out, after=None, calls=None, **kw):
        """One training; `killed` in the answer says whether it died."""
        self.parent.stdin.write(json.dumps(dict(base=str(base), out=str(out), after=after, calls=calls, kw=kw)) + "\n")
        self.parent.stdin.flush()
        return json.loads(self.parent.stdout.readline())

    def close(self):
        self.parent.stdin.close()
        self.parent.wait(30)


def child(order, pipe):
    """Train; die at the call that was named; tell how many there were."""
    import test_train

    from hfflow.engine import training
    seen, fit = 0, test_train.fit

    def watched(*args, **kw):
        def profile(frame, event, f):
            nonlocal seen
            if event != "c_return" or f.__name__ not in CALLS: return
            seen += 1
            if seen == order["calls"]: os.kill(os.getpid(), signal.SIGKILL)
        os.write(pipe, b"!")            # from here on the time counts
        if order["calls"] is None: return fit(*args, **kw)
        sys.setprofile(profile)
        try: return fit(*args, **kw)
        finally: sys.setprofile(None)

    test_train.fit, training.plot_loss = watched, lambda run: type("NoFigure", (), {"savefig": lambda self, *a, **kw: None})()
    test_train.start(order["base"], order["out"], **order["kw"])
    os.write(pipe, str(seen).encode())


def serve():
    """Fork a child for every line, and end it when its time has come."""
    import bitsandbytes, peft, transformers.models.llama  # noqa: E401, F401
    import test_train  # noqa: F401
    for line in sys.stdin:
        order, (ours, theirs) = json.loads(line), os.pipe()
        pid = os.fork()
        if not pid:
            os.close(ours)
            os.dup2(2, 1)
            code = 1
            try: code = child(order, theirs) or 0
            finally: os._exit(code)
        os.close(theirs)
        started = os.read(ours, 1)
        start = time.perf_counter()
        if order["after"] is not None and started and not select.select([ours], [], [], order["after"])[0]:
            os.kill(pid, signal.SIGKILL)
        rest = os.read(ours, 99)
        status = os.waitpid(pid, 0)[1]
        os.close(ours)
        print(json.dumps({"killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "code": os.waitstatus_to_exitcode(status),
                          "seconds": time.perf_counter() - start, "calls": int(rest or 0)}), flush=True)


if __name__ == "__main__": serve()
