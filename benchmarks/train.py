"""Fine-tuning on this machine: ours beside TRL's SFTTrainer and the plain Trainer, on the same model, rows and cores.

    python benchmarks/train.py [--quick | --smoke] [--only SHAPE] [--length N] [--beside PEER] [--rounds N] [--json FILE]

Each contender trains the same QLoRA adapter (NF4 base, rank 16, all linear layers but the head) on the same rows, about the same number of tokens
per optimizer step, in a process of its own, one after the other and round after round, so that all see the same machine. A round's figure is the
non-padding tokens per second of all its steps but the first two; a row has the median of the rounds, and the ratio is the median of the rounds'
ratios. A ratio above 1 means ours is better. The loss is that of held-out rows after the last step, one row at a time with all logits, by one
function for all; memory is the most that was resident above what it was with the model loaded and untouched (on a GPU, the most allocated).

The models have random weights and the shapes of a Llama (tiny: 5M, and 110M) and of Qwen2.5-0.5B, on a GPU those of Llama-3.2-1B, Llama-3.2-3B and
Llama-3.1-8B; rows have log-normal lengths whose middle is a quarter of the longest, half of their tokens carry loss, and tokens are as frequent as
Zipf's law has it. All contenders compute in the number format that the machine has units for. The peers are

    TRL's SFTTrainer with its defaults: gradient checkpointing, adapter in bf16. A CPU without bf16 units imitates this format so slowly that
        the first round alone has this row there, for a single timed step, and no loss is compared
    the same with the adapter in the number format of the rest, on such a CPU
    TRL at its best: packing, and padding, without checkpointing, the adapter in the number format of the rest
    on a GPU TRL with Liger's kernels, and Unsloth
    the plain Trainer, padded

and each is measured where it is installed (pip install trl liger-kernel unsloth); without them, the plain Trainer alone.
"""
import argparse
import itertools
import json
import math
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

LLAMA = dict(model_type="llama", tie_word_embeddings=False, max_position_embeddings=2048)
LLAMA_3 = dict(model_type="llama", num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=False)
SHAPES = {   # rows per step, steps, longest row; then the model's config
    "tiny": (16, 22, 512, dict(LLAMA, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
                               vocab_size=4096)),
    "110M": (16, 6, 512, dict(LLAMA, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
                              vocab_size=32000, tie_word_embeddings=True)),
    "0.5B": (8, 5, 512, dict(model_type="qwen2", hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                             num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=2048)),
    "1B": (16, 12, 2048, dict(LLAMA_3, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, tie_word_embeddings=True)),
    "3B": (16, 8, 2048, dict(LLAMA_3, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24, tie_word_embeddings=True)),
    "8B": (16, 8, 2048, dict(LLAMA_3, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32)),
}
FOR_CPU, FOR_GPU = ["tiny", "110M", "0.5B"], ["1B", "3B", "8B"]
HELD_OUT = 16   # rows that nobody trains on
SKIPPED = 2     # steps before the clock starts: allocation, first touch of every weight, trials of what a model allows


# Model and rows

def make(folder, config, rows, longest, seed=0):
    "A base of random weights and a tokenizer's worth of special ids, saved; and rows of token ids with labels."
    import torch
    import transformers
    torch.manual_seed(seed)
    cfg = transformers.AutoConfig.for_model(**config, bos_token_id=None, eos_token_id=0, pad_token_id=1)
    transformers.logging.disable_progress_bar()
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        transformers.AutoModelForCausalLM.from_config(cfg, dtype=torch.float32).to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer(config["vocab_size"]).save_pretrained(folder / "model")
    rng, out, words = random.Random(seed), [], range(4, config["vocab_size"])
    zipf = list(itertools.accumulate(1 / (i + 1) for i in range(len(words))))
    for _ in range(rows):
        n = min(longest, max(16, int(rng.lognormvariate(math.log(longest / 4), .6))))
        ids = rng.choices(words, cum_weights=zipf, k=n)
        out.append(dict(input_ids=ids, labels=[-100] * (n // 2) + ids[n // 2:]))
    (folder / "rows.json").write_text(json.dumps(out))


def tokenizer(vocab):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    words = {f"w{i}": i for i in range(2, vocab)} | {"<end>": 0, "<pad>": 1}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")), eos_token="<end>", pad_token="<pad>")


# Contenders: each trains `rows` and returns (model, seconds per step, tokens per step)

def base_model(folder, dtype):
    "The NF4 base as everybody loads it."
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    where = {"": "cuda" if torch.cuda.is_available() else "cpu"}
    model = AutoModelForCausalLM.from_pretrained(folder / "model", quantization_config=nf4, dtype=dtype, device_map=where)
    for m in model.modules():
        if hasattr(m, "support_avx512bf16_for_cpu"): m.support_avx512bf16_for_cpu = False      # or training after an evaluation goes wrong
    return model


def ours(folder, rows, at, memory, **settings):
    from hfflow import qlora
    model = qlora.add_lora(qlora.load_base(folder / "model"), qlora.QloraConfig(rank=16))
    memory.start()
    return fitted(model, qlora.load_tokenizer(folder / "model"), rows, at, **settings)


def fitted(model, tok, rows, at, **settings):
    "Train by hfflow's loop."
    from hfflow import train
    cfg = train.TrainConfig(batch=at["batch"], max_steps=at["steps"], lr=at["lr"], warmup=0, schedule="constant", clip=1., max_len=at["longest"],
                            save_every=10**6, threads=at["threads"], **settings)
    with tempfile.TemporaryDirectory() as out:
        train.fit(model, tok, rows, cfg, out, progress=False)
        log = [json.loads(line) for line in open(Path(out) / "log.jsonl")]
    return model, [(e["seconds"], e["tokens"]) for e in log if "loss" in e]


def lora():
    from peft import LoraConfig
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0., target_modules="all-linear", task_type="CAUSAL_LM")


def clocked(trainer_class, model, args, data, adapters=None, **kw):
    "Train by a Trainer that notes when each step ended and how many tokens that are no padding it had read."
    from transformers import TrainerCallback
    ends, state = [], dict(tokens=0, start=0.)

    class Clock(TrainerCallback):
        def on_train_begin(self, *a, **k): state["start"] = time.perf_counter()
        def on_step_end(self, *a, **k): ends.append((time.perf_counter() - state["start"], state["tokens"]))

    class Counting(trainer_class):
        def training_step(self, model, inputs, *a, **k):
            mask = inputs.get("attention_mask")
            state["tokens"] += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            return super().training_step(model, inputs, *a, **k)

    trainer = Counting(model=model, args=args, train_dataset=data, callbacks=[Clock()], **kw)
    if adapters:
        for p in trainer.model.parameters():
            if p.requires_grad: p.data = p.data.to(adapters)
    trainer.train()
    return trainer.model, ends


def common(at, out):
    "Settings that every peer gets, for the same learning."
    import torch
    return dict(output_dir=out, max_steps=at["steps"], learning_rate=at["lr"], lr_scheduler_type="constant", per_device_train_batch_size=at["batch"],
                report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=0, use_cpu=not torch.cuda.is_available())


def trl(folder, rows, at, memory, native=False, **settings):
    "SFTTrainer with its defaults but for `settings`; bf16, its default, only where the machine computes in bf16 and does not imitate it."
    import torch
    from datasets import Dataset
    from hfflow.qlora import compute_dtype
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    dtype = compute_dtype()
    model, tok = base_model(folder, dtype), AutoTokenizer.from_pretrained(folder / "model")
    memory.start()
    kw = common(at, tempfile.mkdtemp(dir=folder)) | dict(bf16=dtype == torch.bfloat16, fp16=dtype == torch.float16) | settings
    if kw.get("packing"):         # as many tokens per step as the others
        mean, kw["max_length"] = statistics.mean(len(r["input_ids"]) for r in rows), max(1024, at["longest"])
        kw["per_device_train_batch_size"] = max(1, round(at["batch"] * mean / kw["max_length"]))
    data = Dataset.from_list([dict(input_ids=r["input_ids"], labels=r["labels"]) for r in rows])
    return clocked(SFTTrainer, model, SFTConfig(**kw), data, dtype if native else None, processing_class=tok, peft_config=lora())


def unsloth(folder, rows, at, memory):
    "Unsloth's model in TRL's SFTTrainer, its own gradient checkpointing on, as its notebooks have it."
    from unsloth import FastLanguageModel
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    model, tok = FastLanguageModel.from_pretrained(str(folder / "model"), max_seq_length=at["longest"], load_in_4bit=True)
    model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32, lora_dropout=0, use_gradient_checkpointing="unsloth")
    memory.start()
    data = Dataset.from_list([dict(input_ids=r["input_ids"], labels=r["labels"]) for r in rows])
    args = SFTConfig(**common(at, tempfile.mkdtemp(dir=folder)), max_length=at["longest"])
    return clocked(SFTTrainer, model, args, data, processing_class=tok)


def trainer(folder, rows, at, memory):
    import torch
    from hfflow.qlora import compute_dtype
    from peft import get_peft_model
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments
    dtype = compute_dtype()
    tok = AutoTokenizer.from_pretrained(folder / "model")
    model = get_peft_model(base_model(folder, dtype), lora())
    memory.start()
    args = TrainingArguments(**common(at, tempfile.mkdtemp(dir=folder)), bf16=dtype == torch.bfloat16)
    return clocked(Trainer, model, args, Dataset.from_list(rows), data_collator=DataCollatorForSeq2Seq(tok))


CONTENDERS = {
    "ours": (ours, "ours"),
    "ours-cached": (partial(ours, cache_weights=True), "ours, de-quantised weights kept"),
    "ours-compiled": (partial(ours, compile=True), "ours, layers compiled"),
    "ours-small": (partial(ours, checkpointing=True, offload=True), "ours, checkpointing, activations in the CPU's memory"),
    "trl": (trl, "TRL, defaults"),
    "trl-native": (partial(trl, native=True), "TRL, defaults, adapter in fp32"),
    "trl-padded": (partial(trl, native=True, gradient_checkpointing=False), "TRL, padded, no checkpointing"),
    "trl-packed": (partial(trl, native=True, gradient_checkpointing=False, packing=True), "TRL, packing, no checkpointing"),
    "trl-liger": (partial(trl, native=True, packing=True, use_liger_kernel=True), "TRL with Liger, packing, checkpointing"),
    "unsloth": (unsloth, "Unsloth"),
    "trainer": (trainer, "Trainer, padded"),
}


# Measuring

class Memory:
    "Most resident memory since `start`, above what was resident then; on a GPU, the most that was allocated."
    def start(self):
        import gc
        import torch
        gc.collect()
        if torch.cuda.is_available(): return torch.cuda.reset_peak_memory_stats()
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self.status("VmRSS")

    def status(self, key): return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))

    def peak(self):
        import torch
        if torch.cuda.is_available(): return torch.cuda.max_memory_allocated()
        return self.status("VmHWM") - self.before


def held_out(model, rows):
    "Mean loss per label token, one row at a time, with all logits, in fp32."
    import torch
    import torch.nn.functional as F
    model.eval()
    total, n = 0., 0
    with torch.no_grad():
        for r in rows:
            ids, labels = (torch.tensor([r[k]], device=model.device) for k in ("input_ids", "labels"))
            logits = model(input_ids=ids).logits[0, :-1].float()
            total += F.cross_entropy(logits, labels[0, 1:], reduction="sum").item()
            n += int((labels[0, 1:] != -100).sum())
    return total / n


def work(name, folder, at):
    "In a process of its own: one contender's training, as a line of JSON."
    import torch
    torch.set_num_threads(at["threads"])
    rows, memory = json.loads((folder / "rows.json").read_text()), Memory()
    held, rows = rows[:HELD_OUT], rows[HELD_OUT:]
    model, ends = CONTENDERS[name][0](folder, rows, at, memory)
    peak = memory.peak()
    (t0, n0), (t1, n1) = ends[SKIPPED - 1], ends[-1]
    print(json.dumps(dict(rate=(n1 - n0) / (t1 - t0), memory=peak / 2**20, loss=held_out(model, held), steps=len(ends))))


def measure(name, folder, at, script):
    env = dict(os.environ, OMP_NUM_THREADS=str(at["threads"]), MKL_NUM_THREADS=str(at["threads"]), TOKENIZERS_PARALLELISM="false",
               HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore")
    call = [sys.executable, str(script), "--worker", name, "--folder", str(folder), "--at", json.dumps(at)]
    done = subprocess.run(call, capture_output=True, text=True, env=env)
    if done.returncode: raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def contenders():
    "Those that are installed and that this machine can run."
    import torch
    gpu, missing = torch.cuda.is_available(), [p for p in ("trl", "liger_kernel", "unsloth") if not find_spec(p)]
    if "--worker" not in sys.argv and "trl" in missing: print("trl is not installed: its rows are left out")
    def runs(name):
        needs = {"trl-liger": ("trl", "liger_kernel"), "unsloth": ("trl", "unsloth")}.get(name, ("trl",) if name.startswith("trl") else ())
        on_gpu = name in ("trl-liger", "unsloth", "ours-compiled", "ours-small")
        return not set(needs) & set(missing) and (gpu or not on_gpu) and (imitated() or name != "trl-native")
    return [n for n in CONTENDERS if runs(n)]


def imitated():
    "Would this machine compute bf16 without units for it?"
    import torch
    from hfflow.qlora import compute_dtype
    return compute_dtype() == torch.float32


def rows_of(shape, rounds):
    "Rows of one shape from the figures of all its rounds."
    three = lambda x: float(f"{x:.4g}")
    mid = lambda name, key: statistics.median(r[name][key] for r in rounds if name in r)
    def row(case, peer, key, unit, ratio, ours="ours"):
        ratios = [ratio(r[ours][key], r[peer][key]) for r in rounds if peer in r]
        return dict(case=f"{shape}: {case}", ours=three(mid(ours, key)), peer=three(mid(peer, key)), peer_name=CONTENDERS[peer][1],
                    ratio=three(statistics.median(ratios)), unit=unit)
    peers = [n for n in rounds[0] if not n.startswith("ours")]
    best = max(peers, key=lambda n: mid(n, "rate"))
    for n in peers: yield row("speed", n, "rate", "tokens/s", lambda a, b: a / b)
    if "ours-cached" in rounds[0]: yield row("speed, weights kept", best, "rate", "tokens/s", lambda a, b: a / b, "ours-cached")
    for n in peers: yield row("memory", n, "memory", "MiB", lambda a, b: b / a)
    for name, what in (("ours-compiled", "compiled"), ("ours-small", "checkpointing")):
        for n in peers if name in rounds[0] else ():
            yield row(f"speed, {what}", n, "rate", "tokens/s", lambda a, b: a / b, name)
            yield row(f"memory, {what}", n, "memory", "MiB", lambda a, b: b / a, name)
    for n in peers:
        if rounds[0][n]["steps"] == rounds[0]["ours"]["steps"]: yield row("held-out loss", n, "loss", "nats", lambda a, b: b / a)


def machine():
    import torch
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1] if Path("/proc/cpuinfo").exists() else platform.processor()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    from hfflow.qlora import compute_dtype
    return f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB{gpu}, {platform.system()}, computes in {str(compute_dtype()).removeprefix('torch.')}"


def versions():
    found = dict(Python=platform.python_version())
    for p in ("hfflow", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "liger-kernel", "unsloth"):
        try: found[p] = version(p)
        except PackageNotFoundError: found[p] = None
    return found


def facts(threads):
    "What every kept row says of where and when it was measured; printed as well."
    found = dict(date=datetime.now(timezone.utc).strftime("%Y-%m-%d"), machine=machine(), versions=versions(),
                 threads=threads or len(os.sched_getaffinity(0)))
    print(found["date"], found["machine"], f"{found['threads']} threads", f"load {os.getloadavg()[0]:.1f}", sep=" | ")
    print(", ".join(f"{k} {v}" for k, v in found["versions"].items()))
    return found


def options(text, peers, quick, smoke):
    "The options that all benchmarks of training have; `peers` can be chosen among, `quick` and `smoke` say what these do."
    p = argparse.ArgumentParser(description=text.splitlines()[0])
    size = p.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help=f"{quick}: within two minutes on two cores")
    size.add_argument("--smoke", action="store_true", help=f"{smoke}, whose figures say nothing: does the script run?")
    p.add_argument("--only", metavar="SHAPE", action="append", choices=list(SHAPES), help=f"only this of {', '.join(SHAPES)}; may be repeated")
    if peers: p.add_argument("--beside", metavar="PEER", action="append", choices=peers, help=f"only this of {', '.join(peers)}; may be repeated")
    p.add_argument("--threads", type=int, default=None, help="CPU threads (default: the cores that this process may use)")
    p.add_argument("--json", metavar="FILE", help="also write the rows to this file, each with date, machine and versions")
    for name in ("--worker", "--folder", "--at"): p.add_argument(name, help=argparse.SUPPRESS)
    return p


def main(text, names, rows_of, script, peers=()):
    p = options(text, peers, "the tiny shape in small batches, once", "the first and the last contender, for three steps in batches of 2")
    p.add_argument("--length", type=int, default=None, help="longest row in tokens, with so many rows per step that the tokens stay as many")
    p.add_argument("--rounds", type=int, default=3, help="how often each contender runs (default: 3)")
    args = p.parse_args()
    if args.worker: return work(args.worker, Path(args.folder), json.loads(args.at))
    small = args.quick or args.smoke
    if args.smoke: names = [names[0], names[-1]]
    elif peers and args.beside: names = [n for n in names if n not in peers or n in args.beside]
    slow = {"trl"} if imitated() else set()
    at_hand = facts(args.threads)
    print(f"{'case':<28} {'ours':>9} {'peer':>9} {'ratio':>7}  {'unit':<9} peer")
    rows = []
    import torch
    for shape in args.only or (["tiny"] if small else FOR_GPU if torch.cuda.is_available() else FOR_CPU):
        batch, steps, longest, config = SHAPES[shape]
        if args.length: batch, longest = max(1, batch * longest // args.length), args.length
        if small: batch, steps = (2, 3) if args.smoke else (4, 5)
        at = dict(batch=batch, steps=steps, longest=longest, lr=1e-3, threads=at_hand["threads"])
        with tempfile.TemporaryDirectory(prefix="train-benchmark-") as d:
            make(Path(d), config, batch * (steps + 2) + HELD_OUT, longest)
            rounds = []
            for i in range(1 if small else args.rounds):
                # each round begins with another one, so that none always runs on a machine that has just rested
                turn = names[i % len(names):] + names[:i % len(names)]
                found = {n: measure(n, Path(d), at | dict(steps=SKIPPED + 1) if n in slow else at, script)
                         for n in turn if i == 0 or n not in slow}
                rounds.append({n: found[n] for n in names if n in found})
        for r in rows_of(shape, rounds):
            rows.append(r | at_hand)
            print(f"{r['case']:<28} {r['ours']:>9g} {r['peer']:>9g} {r['ratio']:>7.3g}  {r['unit']:<9} {r['peer_name']}", flush=True)
    if args.json: Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    names = contenders()
    main(__doc__, names, rows_of, Path(__file__), [n for n in names if not n.startswith("ours")])
