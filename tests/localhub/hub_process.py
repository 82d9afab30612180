"""A Hub as a process of its own, as users run it."""
import re
import subprocess
import sys
from pathlib import Path

TOKENS = {"you": "token-of-you-0123456789", "ann": "token-of-ann-0123456789"}


class Server:
    """A Hub as a process of its own, as users run it."""

    def __init__(self, data, *extra):
        args = [sys.executable, "-m", "hfflow.localhub", "--data", str(data), "--org", "hfflow:you"]
        for name, token in TOKENS.items():
            args += ["--user", f"{name}:{token}"]
        self.data = Path(data)
        self.process = subprocess.Popen([*args, *extra], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not re.fullmatch(r"Hub at http://127\.0\.0\.1:\d+\n", line):
            raise AssertionError(f"the Hub did not start: {line!r} {self.process.stderr.read()}")
        self.url = line.split()[-1]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()
