"""What each step away from the plain loop gives: tokens per second, memory and loss, rung by rung.

    python benchmarks/ladder.py [--quick | --smoke] [--only SHAPE] [--rounds N] [--json FILE]

Every rung trains the same adapter on the same rows by hfflow's own loop, with one thing more than the rung below it; the lowest computes as plain
transformers and peft do: padded batches, all logits, peft's LoRA layers. The columns are those of benchmarks/train.py, and the peer of each rung is the
lowest one, so the ratio says what all rungs up to this one give together. On a CPU the loss is the same up to rounding.
"""
import statistics
from contextlib import nullcontext
from pathlib import Path

import train as bench

RUNGS = ["plain", "loss on labels", "last MLP on labels", "documents packed", "LoRA in one function", "weights kept"]


def ours(rung, folder, rows, at, memory):
    "Our loop with everything above `rung` taken away."
    import hfflow.train as loop
    from hfflow import loss, qlora
    has = lambda name: RUNGS.index(name) <= rung
    model = qlora.add_lora(qlora.load_base(folder / "model"), qlora.QloraConfig(rank=16))
    paths = loss._paths(model)
    paths.split &= has("loss on labels")
    paths.packed &= has("documents packed")
    if not has("last MLP on labels"): paths.mlp = None
    if not has("LoRA in one function"): loop.fast_lora = lambda model, cache: nullcontext(model)
    memory.start()
    return bench.fitted(model, qlora.load_tokenizer(folder / "model"), rows, at, cache_weights=has("weights kept"))


bench.CONTENDERS |= {f"rung-{i}": ((lambda *a, i=i: ours(i, *a)), name) for i, name in enumerate(RUNGS)}


def rows_of(shape, rounds):
    "Rows of one shape from the figures of all its rounds."
    three = lambda x: float(f"{x:.4g}")
    for key, unit in (("rate", "tokens/s"), ("memory", "MiB"), ("loss", "nats")):
        for i in (int(n.removeprefix("rung-")) for n in rounds[0]):
            name = RUNGS[i]
            mine, plain = ([r[f"rung-{j}"][key] for r in rounds] for j in (i, 0))
            ratios = [a / b if key == "rate" else b / a for a, b in zip(mine, plain)]
            yield dict(case=f"{shape}: {'+ ' * (i > 0)}{name}", ours=three(statistics.median(mine)), peer=three(statistics.median(plain)),
                       peer_name=RUNGS[0], ratio=three(statistics.median(ratios)), unit=unit)


if __name__ == "__main__": bench.main(__doc__, [f"rung-{i}" for i in range(len(RUNGS))], rows_of, Path(__file__))
