"""How long a row can be: the longest context that trains within so much memory.

    python benchmarks/context.py [--quick | --smoke] [--only SHAPE] [--within GIB] [--beside PEER] [--json FILE]

Each contender of benchmarks/train.py that recomputes activations trains two steps, with one row per step, in a process of its own. The row's length is
doubled as long as it fits, and then raised in ever smaller parts, down to an eighth. Memory is what the process had resident above the loaded model, so
on a CPU the limits are small; on a GPU it is all that was allocated, the limits are 16, 24 and 80 GiB as far as the device has them, and what the system
itself takes of a card has to be added. Ours is measured with gradient checkpointing and, on a GPU, with its activations in the CPU's memory, as a user
would run it who needs the room.
"""
import json
import tempfile
from functools import partial
from pathlib import Path

import train as bench

bench.CONTENDERS["ours-long"] = (partial(bench.ours, checkpointing=True, offload=True), "ours, checkpointing")
SHORTEST, LONGEST = 256, 2**20      # tokens


def work(name, folder, at):
    "In a process of its own: the most memory that one contender's training took."
    import torch
    torch.set_num_threads(at["threads"])
    memory = bench.Memory()
    bench.CONTENDERS[name][0](folder, json.loads((folder / "rows.json").read_text()), at, memory)
    print(json.dumps(dict(memory=memory.peak())))


def fits(name, model, n, limit, threads):
    "Does a row of n tokens train within `limit` bytes?"
    with tempfile.TemporaryDirectory(prefix="context-benchmark-") as d:
        folder, ids = Path(d), [4 + i % 1000 for i in range(n)]
        (folder / "model").symlink_to(model)
        (folder / "rows.json").write_text(json.dumps([dict(input_ids=ids, labels=[-100] * (n // 2) + ids[n // 2:])] * 2))
        at = dict(batch=1, steps=2, longest=n, lr=1e-3, threads=threads)
        try: return bench.measure(name, folder, at, Path(__file__))["memory"] <= limit
        except SystemExit as e:
            if any(words in str(e).lower() for words in ("out of memory", "memory ran out", "can't allocate memory")): return False
            raise


def longest(name, model, limit, threads, most=LONGEST):
    "Tokens of the longest row within `limit` bytes, to within an eighth and at most `most`; 0 where the shortest is too long."
    fit = partial(fits, name, model, limit=limit, threads=threads)
    good, step = SHORTEST, SHORTEST
    if not fit(good): return 0
    while good < most and fit(2 * good): good = step = 2 * good
    while good < most and (step := step // 2) >= max(32, good // 8):
        if fit(good + step): good += step
    return good


def main():
    import torch
    peers = [n for n in bench.contenders() if n in ("trl-native", "trl-liger", "unsloth") or n == "trl" and not bench.imitated()]
    p = bench.options(__doc__, peers, "the tiny shape within a quarter of a GiB", "ours alone and short rows")
    p.add_argument("--within", metavar="GIB", type=float, action="append", help="only this much memory; may be repeated")
    args = p.parse_args()
    if args.worker: return work(args.worker, Path(args.folder), json.loads(args.at))
    gpu, small = torch.cuda.is_available(), args.quick or args.smoke
    limits = args.within or ([.25] if small or not gpu else [g for g in (16, 24, 80) if g * 2**30 <= torch.cuda.get_device_properties(0).total_memory])
    names = ["ours-long"] + ([] if args.smoke else peers and args.beside or peers)
    facts = bench.facts(args.threads)
    print(f"{'case':<36} {'ours':>9} {'peer':>9} {'ratio':>7}  {'unit':<9} peer")
    rows = []
    for shape in args.only or (["tiny"] if small or not gpu else bench.FOR_GPU):
        with tempfile.TemporaryDirectory(prefix="context-benchmark-") as d:
            bench.make(Path(d), bench.SHAPES[shape][3] | dict(max_position_embeddings=LONGEST), 0, 512)
            for limit in limits:
                found = {n: longest(n, Path(d) / "model", limit * 2**30, facts["threads"], 2 * SHORTEST if args.smoke else LONGEST) for n in names}
                ours = found.pop("ours-long")
                for peer, tokens in found.items() or [(None, None)]:
                    r = dict(case=f"{shape}: longest row in {limit:g} GiB", ours=ours, peer=tokens, unit="tokens",
                             peer_name=peer and bench.CONTENDERS[peer][1], ratio=round(ours / tokens, 3) if tokens else None)
                    rows.append(r | facts)
                    print(f"{r['case']:<36} {ours:>9} {tokens or '':>9} {r['ratio'] or '':>7}  {'tokens':<9} {r['peer_name'] or ''}", flush=True)
    if args.json: Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
