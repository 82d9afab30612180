"""Real weights and real text: hfflow's flow beside what a practitioner would do instead, in one run.

    python benchmarks/real.py [--quick | --smoke] [--reviews FILE] [--gemma FOLDER [--minutes N] [--only-gemma]] [--threads N] [--json FILE]

Film reviews: a pretrained encoder of 22.7M parameters (MiniLM) learns in one pass to tell good ones from bad ones. Everybody reads the same training
rows and is asked the same 1,000 held-out rows. hfflow runs its flow from the CSV file to the figures (NF4, LoRA, all settings as it chooses them);
beside it stand

    Trainer with its defaults, every weight trained in fp32 (rate 5e-5, 8 rows per step)
    Trainer with peft's LoRA on the fp32 model (rank 32, all linear layers, hfflow's rate)
    TF-IDF and logistic regression of scikit-learn

Each runs in a process of its own. Rows give right labels in percent with a 95 % Wilson interval, seconds of training, and the most memory that the
process had. A ratio above 1 means ours is better. Two rows more hold the plan beside what was measured, and one the seconds of the whole flow.

With --gemma, a folder with Gemma 3 270M as save_pretrained writes it, the same minutes of training on the default task for it and for the base that
comes with hfflow: exact answers to 40 requests of each kind in percent, and again the plan beside what was measured. Encoder and reviews come from where `hfflow.examples` finds
them; --reviews names a CSV file of texts and labels instead.
"""
import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from train import facts

NAMES = {"trainer": "Trainer, every weight", "peft": "Trainer with peft's LoRA", "tfidf": "TF-IDF + logistic regression"}


# Contenders: each returns right answers, rows asked, seconds of training

@cache
def prepared(source):
    from hfflow import data
    return data.prepare(source, progress=False, task="classify")


def rows(at, name):
    found = prepared(at["reviews"]).splits[name]
    most = {"train": at["train"], "test": at["test"]}[name]
    return found.select(range(min(most or len(found), len(found))))


def ours(at):
    "The flow from the CSV file to the figures."
    from hfflow import examples, flow, hub
    cfg = examples.EXAMPLES["reviews"] | dict(base=at["encoder"], data=at["reviews"], preset="cpu", train=dict(threads=at["threads"]),
                                              name="real-reviews", evaluate=dict(limit=at["test"]), publish={"if": "always"})
    if at["train"]: cfg = {k: v for k, v in cfg.items() if k != "epochs"} | dict(train=dict(threads=at["threads"], max_steps=at["train"] // 8))
    with tempfile.TemporaryDirectory() as d: made = flow.run(cfg, hub.connect(), d, progress=False)
    row = made.metrics["after"][0]
    return dict(right=row["right"], n=row["n"], seconds=made.predicted["training_seconds"]["measured"], flow=made.seconds,
                memory_plan=made.predicted["memory_bytes"], seconds_plan=made.predicted["training_seconds"])


def trainer(at, lora=False):
    "transformers' Trainer, and the answers of what it trained."
    import torch
    import transformers as tf
    from hfflow import data, metrics
    torch.set_num_threads(at["threads"])
    labels, folder = data.label_names(prepared(at["reviews"])), at["folder"]
    tok = tf.AutoTokenizer.from_pretrained(at["encoder"])
    tf.set_seed(0)
    model = tf.AutoModelForSequenceClassification.from_pretrained(at["encoder"], id2label=dict(enumerate(labels)), dtype=torch.float32,
                                                                  label2id={l: i for i, l in enumerate(labels)})
    if lora:
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="SEQ_CLS"))
    encoded = [dict(tok(r["prompt"], truncation=True, max_length=256), label=labels.index(r["completion"])) for r in rows(at, "train")]
    args = tf.TrainingArguments(folder, num_train_epochs=1, per_device_train_batch_size=8, learning_rate=at["lr"] if lora else 5e-5, report_to="none",
                                save_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(), logging_strategy="no")
    start = time.perf_counter()
    tf.Trainer(model, args, train_dataset=encoded, data_collator=tf.DataCollatorWithPadding(tok)).train()
    seconds = time.perf_counter() - start
    test = rows(at, "test")
    base = model.get_base_model() if lora else model
    base.config.problem_type = "single_label_classification"
    got = metrics.classify(base, tok, list(test["prompt"]))
    return dict(right=sum(a == b for a, b in zip(got, test["completion"])), n=len(got), seconds=seconds)


def peft(at): return trainer(at, lora=True)


def tfidf(at):
    from hfflow import metrics
    start = time.perf_counter()
    learned = metrics.tfidf_control(rows(at, "train"))
    seconds, test = time.perf_counter() - start, rows(at, "test")
    got = learned(list(test["prompt"]))
    return dict(right=sum(a == b for a, b in zip(got, test["completion"])), n=len(got), seconds=seconds)


def writer(at):
    "The default task with one base, for so many minutes of training."
    from hfflow import flow, hub
    me, base = hub.connect(), at["base"]
    if Path(base).is_dir():
        me.api.create_repo("you/gemma-3-270m", exist_ok=True)
        base = me.api.upload_folder(repo_id="you/gemma-3-270m", folder_path=base).repo_url.repo_id
    cfg = dict(preset="cpu", base=base, name="real-writer", minutes=at["minutes"], evaluate=dict(limit=at["test"], batch=16, max_new_tokens=80),
               train=dict(threads=at["threads"]))
    with tempfile.TemporaryDirectory() as d: made = flow.run(cfg, me, d, progress=False, stages="evaluate")
    return dict(after=made.metrics["after"], steps=made.result("train")["run"]["steps"], flow=made.seconds,
                memory_plan=made.predicted["memory_bytes"], seconds_plan=made.predicted["training_seconds"])


def measure(name, at):
    "Run one contender in a process of its own."
    with tempfile.TemporaryDirectory(prefix="real-benchmark-") as d:
        out = Path(d) / "out.json"
        done = subprocess.run([sys.executable, __file__, "--worker", name, "--at", json.dumps(at | dict(folder=d)), "--json", str(out)],
                              capture_output=True, text=True)
        if done.returncode: raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
        return json.loads(out.read_text())


# Rows

def row(case, ours, peer, name, unit, more_is_better=False, **extra):
    better = ours / peer if more_is_better else peer / ours
    return dict(case=case, ours=round(ours, 3), peer=round(peer, 3), peer_name=name, ratio=round(better, 3), unit=unit, **extra)


def shares(found):
    from hfflow.evaluate import wilson
    lo, hi = wilson(found["right"], found["n"])
    return 100 * found["right"] / found["n"], [round(100 * lo, 1), round(100 * hi, 1)]


def plan_rows(case, mine):
    for key, unit, scale in (("memory", "MiB", 2**20), ("seconds", "s", 1)):
        p = mine[f"{key}_plan"]
        yield row(f"{case}: plan of {key}", p["predicted"] / scale, p["measured"] / scale, "measured", unit)


def review_rows(at):
    mine = measure("ours", at)
    x, span = shares(mine)
    for name, title in NAMES.items():
        theirs = measure(name, at)
        y, other = shares(theirs)
        yield row("reviews: right", x, y, title, "% right", True, n=mine["n"], ours_name="hfflow: 4 bits + LoRA", ours_interval=span, peer_interval=other)
        yield row("reviews: training", mine["seconds"], theirs["seconds"], title, "s")
        yield row("reviews: memory of the process", mine["memory"], theirs["memory"], title, "MiB")
    yield row("reviews: the whole flow", mine["flow"], 240, "four minutes", "s")
    yield from plan_rows("reviews", mine)


def writer_rows(at):
    small, large = (measure("writer", at | dict(base=b)) for b in ("hfflow/tiny-llama", at["gemma"]))
    for a, b in zip(small["after"], large["after"]):
        (x, span), (y, other) = shares(a), shares(b)
        yield row(f"flow-writer, {at['minutes']:g} minutes: {a['split']}", x, max(y, 1e-9), "Gemma 3 270M", "% exact", True, n=a["n"],
                  ours_name="hfflow/tiny-llama", ours_interval=span, peer_interval=other, steps=[small["steps"], large["steps"]])
    yield from plan_rows("Gemma 3 270M", large)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--quick", action="store_true", help="800 training rows, 300 held-out ones: within two minutes on two cores")
    p.add_argument("--smoke", action="store_true", help="64 training rows, 20 held-out ones, whose figures say nothing: does the script run?")
    p.add_argument("--reviews", metavar="FILE", help="texts with labels; without it those of the example")
    p.add_argument("--gemma", metavar="FOLDER", help="Gemma 3 270M as save_pretrained writes it")
    p.add_argument("--minutes", type=float, default=3., help="of training on the default task (default: 3)")
    p.add_argument("--only-gemma", action="store_true", help="leave the reviews out")
    p.add_argument("--threads", type=int, help="CPU threads (default: the cores that this process may use)")
    p.add_argument("--json", metavar="FILE", help="also write the rows to this file, each with date, machine and versions")
    for name in ("--worker", "--at"): p.add_argument(name, help=argparse.SUPPRESS)
    args = p.parse_args()
    from hfflow import examples, hub
    from hfflow.engine import recipe
    me = hub.connect()
    if args.worker:
        found = globals()[args.worker](json.loads(args.at))
        found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return Path(args.json).write_text(json.dumps(found, default=str))
    at_hand = facts(args.threads)
    at = dict(encoder=examples.encoder(me), reviews=args.reviews or examples.reviews(me), threads=at_hand["threads"],
              train=64 if args.smoke else 800 if args.quick else None, test=20 if args.smoke else 300 if args.quick else 1000,
              lr=recipe.usual_lr("classify", 22.7e6)[0], minutes=args.minutes, gemma=args.gemma)
    print(f"{'case':<44} {'ours':>9} {'peer':>9} {'ratio':>7}  {'unit':<8} peer")
    out, kinds = [], [review_rows] * (not args.only_gemma) + [writer_rows] * bool(args.gemma)
    for r in (r for kind in kinds for r in kind(at if kind is review_rows else at | dict(test=40))):
        out.append(r | at_hand)
        print(f"{r['case']:<44} {r['ours']:>9g} {r['peer']:>9g} {r['ratio']:>7.3g}  {r['unit']:<8} {r['peer_name']}", flush=True)
    if args.json: Path(args.json).write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
