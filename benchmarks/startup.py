"""How long until the command and the package answer: `hfflow --help` beside `hf --help`, `import hfflow` beside `import transformers`.

    python benchmarks/startup.py [--quick] [--json FILE]

Each figure is the median of several fresh processes, ours and the peer's in turn, so that both see the same machine. A ratio above 1
means ours is better.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path


def command(name):
    "The command of this environment, or else the one on the PATH."
    own = Path(sys.executable).with_name(name)
    return str(own) if own.exists() else shutil.which(name)


def python(code): return [sys.executable, "-c", code]


CASES = [  # case, ours, peer, peer's name
    ("hfflow --help", [command("hfflow"), "--help"], [command("hf"), "--help"], "hf --help"),
    ("hfflow run --help", [command("hfflow"), "run", "--help"], [command("hf"), "upload", "--help"], "hf upload --help"),
    ("import hfflow", python("import hfflow"), python("import transformers"), "import transformers"),
    ("import hfflow.flow", python("import hfflow.flow"), python("from transformers import Trainer"), "from transformers import Trainer"),
]


def seconds(call):
    "Wall-clock seconds of one fresh process."
    env = dict(os.environ, HF_HUB_DISABLE_UPDATE_CHECK="1", HF_HUB_DISABLE_TELEMETRY="1")
    start = time.perf_counter()
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    return time.perf_counter() - start


def measure(ours, peer, times):
    "Medians of both, after one run each that fills the file cache."
    seconds(ours), seconds(peer)
    pairs = [(seconds(ours), seconds(peer)) for _ in range(times)]
    return [statistics.median(column) for column in zip(*pairs)]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--quick", action="store_true", help="5 processes of each instead of 15")
    p.add_argument("--json", metavar="FILE", help="also write the rows to this file")
    args = p.parse_args()
    rows = []
    for case, ours, peer, name in CASES:
        if not (ours[0] and peer[0]): continue
        a, b = measure(ours, peer, 5 if args.quick else 15)
        rows.append({"case": case, "ours": round(a, 4), "peer": round(b, 4), "peer_name": name, "ratio": round(b / a, 2), "unit": "s"})
        print(json.dumps(rows[-1]), flush=True)
    if args.json: Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
