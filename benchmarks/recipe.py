"""Which learning rate suits which base: a small sweep, beside the rate that hfflow takes by itself.

    python benchmarks/recipe.py [--quick | --smoke] [--base NAME] [--gemma FOLDER] [--reviews FILE] [--threads N] [--json FILE]

Three bases are trained at several rates each, everything else being what hfflow takes for them on a CPU (NF4, rank 32, 8 rows per step):

    tiny-llama   the small base that comes with hfflow, on the default task: 300 steps
    minilm       a pretrained encoder of 22.7M parameters, on film reviews: one pass, about 1,070 steps
    gemma        Gemma 3 270M from a folder (--gemma), on the default task: 32 steps

A row is one rate. `ours` is the figure at the rate that hfflow takes where none is named, `peer` that at the rate of the row: right labels among
1,000 held-out reviews in percent, or the loss of 120 held-out answers in nats per token. A ratio above 1 means that hfflow's rate is better. Encoder
and reviews come from where `hfflow.engine.examples` finds them.
"""
import argparse
import json
import tempfile
from pathlib import Path

from train import facts

RATES = {"tiny-llama": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), "minilm": (1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 4e-3), "gemma": (1e-4, 3e-4, 5e-4, 1e-3, 2e-3)}
STEPS = {"tiny-llama": 300, "minilm": None, "gemma": 32}
HELD_OUT = 120


def rows_of(prepared, name, column="completion"):
    return prepared.splits[name].add_column("label", list(prepared.splits[name][column]))


def trained(base, task, prepared, lr, steps, threads, labels=None):
    "The base with an adapter trained at one rate; its tokenizer, and the loss of held-out rows."
    from hfflow import evaluate, qlora, train
    from hfflow.engine import errors, tasks
    model, tok = qlora.load_base(base, bits=4, task=task, labels=labels), qlora.load_tokenizer(base)
    rows = tasks.encode_rows(rows_of(prepared, "train"), tok, model, 256)[0]
    held = rows_of(prepared, "validation")
    held = tasks.encode_rows(held.select(range(min(HELD_OUT, len(held)))), tok, model, 256)[0]
    model = qlora.add_lora(model, qlora.QloraConfig(rank=32))
    cfg = train.TrainConfig(lr=lr, batch=8, beta2=.98, epochs=1, max_steps=steps, max_len=256, save_every=10**6, threads=threads)
    with tempfile.TemporaryDirectory() as d:
        try: train.fit(model, tok, rows, cfg, d, progress=False)
        except errors.UserError: return None      # the loss exploded, which is a figure, too
    return model, tok, float(evaluate.held_out_loss(model, tok, held))


def figure(name, base, prepared, lr, steps, threads):
    "What a rate gives: percent right for the encoder, nats for the others; the worst that can be where training broke off."
    from hfflow import data, metrics
    if name != "minilm":
        done = trained(base, "causal", prepared, lr, steps, threads)
        return round(done[2], 4) if done else 99.
    done = trained(base, "classify", prepared, lr, steps, threads, data.label_names(prepared))
    if not done: return 0.
    test = prepared.splits["test"].select(range(min(1000, len(prepared.splits["test"]))))
    got = metrics.classify(done[0], done[1], list(test["prompt"]))
    return round(100 * sum(a == b for a, b in zip(got, test["completion"])) / len(got), 1)


def sweep(name, base, prepared, rates, steps, threads):
    "A row for each rate."
    from hfflow import plan
    from hfflow.engine import recipe
    task, size = plan.kind_and_size(base, "classify" if name == "minilm" else None)
    chosen = recipe.recipe(base, task, size).lr
    found = {lr: figure(name, base, prepared, lr, steps, threads) for lr in sorted({*rates, chosen})}
    unit, better = ("% right", lambda a, b: a / b) if name == "minilm" else ("nats", lambda a, b: b / a)
    for lr, x in found.items():
        yield dict(case=f"{name}: {lr:g}", base=name, lr=lr, chosen=chosen, ours=found[chosen], peer=x, peer_name=f"rate {lr:g}",
                   ratio=round(better(found[chosen], x), 3) if x else None, unit=unit)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--quick", action="store_true", help="the small base alone, three rates, 40 steps: within two minutes on two cores")
    p.add_argument("--smoke", action="store_true", help="the small base, two rates, 3 steps, whose figures say nothing: does the script run?")
    p.add_argument("--threads", type=int, help="CPU threads (default: the cores that this process may use)")
    p.add_argument("--json", metavar="FILE", help="also write the rows to this file, each with date, machine and versions")
    p.add_argument("--gemma", metavar="FOLDER", help="Gemma 3 270M as save_pretrained writes it; without it this base is left out")
    p.add_argument("--reviews", metavar="FILE", help="texts with labels; without it those of the example")
    p.add_argument("--base", action="append", choices=list(RATES), help="only this base; may be repeated")
    args = p.parse_args()
    from hfflow import data, examples, hub
    me, at_hand, rows = hub.connect(), facts(args.threads), []
    names = args.base or (["tiny-llama"] if args.quick or args.smoke else [n for n in RATES if n != "gemma" or args.gemma])
    print(f"{'case':<24} {'ours':>9} {'peer':>9} {'ratio':>7}  {'unit':<9}")
    for name in names:
        base = {"tiny-llama": "hfflow/tiny-llama", "gemma": args.gemma}.get(name) or examples.encoder(me)
        if name == "minilm": prepared = data.prepare(args.reviews or examples.reviews(me), progress=False, task="classify")
        else: prepared = data.prepare("flow-writer", progress=False)
        rates, steps = RATES[name], STEPS[name]
        if args.quick: rates, steps = rates[1:6:2], 40
        if args.smoke: rates, steps = rates[2:4], 3
        for r in sweep(name, base, prepared, rates, steps, at_hand["threads"]):
            rows.append(r | at_hand)
            print(f"{r['case']:<24} {r['ours']:>9g} {r['peer']:>9g} {r['ratio'] or 0:>7.3g}  {r['unit']:<9}", flush=True)
    if args.json: Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
