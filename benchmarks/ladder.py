"""What each step away from the plain loop gives: tokens per second, memory and loss, rung by rung.

    python benchmarks/ladder.py [--quick | --smoke] [--only SHAPE] [--rounds N] [--json FILE]

Every rung trains the same adapter on the same rows by hfflow's own loop, with one thing more than the rung below it; the lowest computes as the plain
Trainer does: all logits of padded batches of random rows, peft's LoRA layers. The first rungs go for speed, the last ones give some of it back for
memory; that which moves activations is left out on a CPU, where they would move from memory to memory, and compiling where there is no compiler.
Where documents are packed, their lengths do not matter, and the rows are again as they fall. The columns are those of benchmarks/train.py, and the
peer of each rung is the lowest one, so the ratio says what all rungs up to this one give together; the time of compiling falls into the steps that
are not timed. On a CPU the loss is the same up to rounding wherever the batches hold the same rows.
"""
import statistics
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import train as bench

RUNGS = {   # each adds to the settings of those before it
    "plain, rows as they fall": dict(sort=False, split=False, mlp=False, packed=False, fused=False, cache_weights=False),
    "rows of like length": dict(sort=True),
    "loss on labels": dict(split=True),
    "last MLP on labels": dict(mlp=True),
    "documents packed": dict(packed=True),
    "LoRA in one function": dict(fused=True),
    "weights kept": dict(cache_weights=True),
    "layers compiled": dict(compile=True),
    "checkpointing, weights not kept": dict(cache_weights=False, checkpointing=True),
    "activations in the CPU's memory": dict(offload=True),
    "8-bit Adam": dict(optimizer="adamw8bit"),
}


def ours(rung, folder, rows, at, memory):
    "Our loop with everything above `rung` taken away."
    from hfflow import qlora
    from hfflow.engine import loss, steps
    settings = {}
    for name, more in rungs().items():
        settings |= more
        if name == rung: break
    model = qlora.add_lora(qlora.load_base(folder / "model"), qlora.QloraConfig(rank=16))
    paths = loss.paths_of(model)
    paths.split &= settings.pop("split")
    paths.packed &= settings.pop("packed")
    if not settings.pop("mlp"): paths.mlp = None
    if not settings.pop("sort"): steps.length_batches = lambda *a, pool, ordered=steps.length_batches: ordered(*a, pool=1)
    if not settings.pop("fused"): steps.fast_lora = lambda model, cache: nullcontext(model)
    memory.start()
    return bench.fitted(model, qlora.load_tokenizer(folder / "model"), rows, at, **settings)


def rungs():
    "Those that this machine can climb."
    from hfflow.engine.compiled import compiler_missing
    from hfflow.qlora import device
    runs = dict(offload=device() == "cuda", compile=compiler_missing(device()) is None)
    return {name: more for name, more in RUNGS.items() if all(runs.get(setting, True) for setting in more)}


bench.CONTENDERS |= {name: (partial(ours, name), name) for name in RUNGS}


def rows_of(shape, rounds):
    "Rows of one shape from the figures of all its rounds."
    three, plain_name = lambda x: float(f"{x:.4g}"), next(iter(RUNGS))
    for key, unit in (("rate", "tokens/s"), ("memory", "MiB"), ("loss", "nats")):
        for i, name in enumerate(rounds[0]):
            mine, plain = ([r[n][key] for r in rounds] for n in (name, plain_name))
            ratios = [a / b if key == "rate" else b / a for a, b in zip(mine, plain)]
            yield dict(case=f"{shape}: {'+ ' * (i > 0)}{name}", ours=three(statistics.median(mine)), peer=three(statistics.median(plain)),
                       peer_name=plain_name, ratio=three(statistics.median(ratios)), unit=unit)


if __name__ == "__main__": bench.main(__doc__, list(rungs()), rows_of, Path(__file__))
