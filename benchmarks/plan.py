"""How far off is the plan? Predicted beside measured memory of real training steps.

    python benchmarks/plan.py [--quick | --smoke] [--only ARCHITECTURE] [--json FILE]

Each cell is a small model of random weights, rows of random lengths, and a setting. A process of its own plans it, from the configuration and the rows;
another loads the model and trains three passes over the rows, while PyTorch's allocator says how much it gave out at most (on a CPU by the profiler's record
of allocations, on a GPU by torch.cuda.max_memory_allocated); a third does the same without being watched, and the system says how much it held in all
(CPU: the most resident memory; GPU: reserved by the allocator, and the context).

A row's `ours` is how far the predicted peak is off, in percent of the measured one; `peer` is how far off `accelerate estimate-memory` is, which takes
four times the weights for a training with Adam; the ratio says how much nearer ours is. `predicted` and `measured` are the peaks in MiB, `total` and
`resident` what the plan asks a device to have and what was held in all: a cell that is said to fit and does not is one whose total is the smaller one.
"""
import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")    # so that looking for a GPU does not forbid to fork
import train as bench

WIDE = dict(hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, vocab_size=4096, max_position_embeddings=1024)
GROUPED = dict(WIDE, num_key_value_heads=2)
HEADS = dict(GROUPED, head_dim=64)
ARCHITECTURES = {
    "llama": ("llama", dict(GROUPED, tie_word_embeddings=False)),
    "qwen3": ("qwen3", dict(HEADS, num_hidden_layers=6)),
    "gemma3": ("gemma3_text", dict(HEADS, sliding_window=64, num_hidden_layers=6)),
    "mistral": ("mistral", dict(GROUPED, hidden_size=384, intermediate_size=1024, num_attention_heads=6, num_key_value_heads=2)),
    "gpt2": ("gpt2", dict(n_embd=256, n_layer=4, n_head=4, n_positions=1024, vocab_size=8192)),
    "phi3": ("phi3", dict(GROUPED, vocab_size=16384)),
    "qwen3_moe": ("qwen3_moe", dict(HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128)),
}
CELLS = {   # what differs from 8 rows of up to 128 tokens, half of them labels, NF4 and rank 16
    "8 x 128": {}, "16 x 128": dict(batch=16), "8 x 256": dict(max_len=256), "8 x 128, rank 64": dict(rank=64),
    "8 x 256, checkpointing": dict(max_len=256, checkpointing=True), "8 x 256, all labels": dict(max_len=256, labels=1.),
    "4 x 256, twice a step": dict(batch=4, accumulation=2, max_len=256), "8 x 128, 16 bits": dict(bits=16),
    "4 x 128, all weights learn": dict(batch=4, bits=32, full=True), "8 x 128, weights kept": dict(cache_weights=True),
}


def setting(batch=8, max_len=128, rank=16, bits=4, full=False, labels=.5, cache_weights=False, **train):
    from hfflow.qlora import QloraConfig
    from hfflow.train import TrainConfig
    rng, rows = random.Random(0), []
    for _ in range(3 * batch * train.get("accumulation", 1)):
        n = rng.randint(max_len // 2, max_len)
        ids, k = [rng.randrange(4, 4000) for _ in range(n)], max(1, int(labels * n))
        rows.append(dict(input_ids=ids, labels=[-100] * (n - k) + ids[n - k:]))
    return rows, QloraConfig(rank=rank, bits=bits, full=full), TrainConfig(batch=batch, max_len=max_len, epochs=3, cache_weights=cache_weights, threads=1, **train)


def apart(work, *args):
    "The JSON that `work` returns, from a process of its own."
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ours)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try: out = work(*args)
        except BaseException: out = dict(error=traceback.format_exc())
        os.write(theirs, json.dumps(out).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as f: out = json.loads(f.read() or '{"error": "killed"}')
    os.waitpid(pid, 0)
    if "error" in out: raise SystemExit(out["error"])
    return out


def predicted(config, rows, qlora, cfg):
    from hfflow.engine import case, devices
    case = case.Case(config, rows, qlora, cfg, devices.gpu_here())
    memory, step = case.memory(cfg), case.step(cfg)
    return dict(peak=step.peak, total=sum(memory.values()), weights=case.model.num_parameters() * 4)


def trained(config, rows, qlora, cfg, folder):
    "The model as it would be trained, and a function that makes all passes over the rows."
    from hfflow.engine.memory import NoTokenizer, held
    from hfflow.qlora import add_lora, load_base
    from hfflow.engine.loop import Loop
    model = add_lora(load_base(folder, qlora.bits), qlora)
    loop = Loop(model, NoTokenizer(), rows, cfg, folder)
    def run():
        with loop.ready():
            while loop.step < loop.data.total: loop.advance()
    return held(model), run


def measured(config, rows, qlora, cfg, folder):
    from hfflow.engine.memory import peak_allocated
    weights, run = trained(config, rows, qlora, cfg, folder)
    return dict(peak=weights + peak_allocated(run)[1])


def resident(config, rows, qlora, cfg, folder):
    import torch
    _, run = trained(config, rows, qlora, cfg, folder)
    run()
    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        reserved = torch.cuda.memory_reserved()
        return dict(resident=whole - free - reserved + torch.cuda.max_memory_reserved())
    return dict(resident=next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))


def make(config, folder):
    import torch
    import transformers
    torch.manual_seed(0)
    transformers.logging.disable_progress_bar()
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return {}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = p.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="one cell of each architecture: within two minutes on two cores")
    size.add_argument("--smoke", action="store_true", help="one cell: does the script run?")
    p.add_argument("--only", metavar="ARCHITECTURE", action="append", choices=list(ARCHITECTURES), help=f"only this of {', '.join(ARCHITECTURES)}; may be repeated")
    p.add_argument("--json", metavar="FILE", help="also write the rows to this file, each with date, machine and versions")
    args = p.parse_args()
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers
    torch.set_num_threads(1)
    pass  # noqa: F401
    facts = bench.facts(1)
    print(f"{'case':<40} {'predicted':>10} {'measured':>10} {'off':>7}  {'total':>7} {'resident':>9}  (MiB)")
    rows = []
    for i, name in enumerate(args.only or (["llama"] if args.smoke else ARCHITECTURES)):
        kind, shape = ARCHITECTURES[name]
        config = transformers.AutoConfig.for_model(kind, **shape, bos_token_id=None, eos_token_id=0, pad_token_id=1)
        # the expert weights of a mixture are no linear layers: all of them learn only in full precision, as elsewhere
        cells = list(CELLS)[i % len(CELLS):][:1] if args.quick or args.smoke else CELLS
        with tempfile.TemporaryDirectory(prefix="plan-benchmark-") as folder:
            apart(make, config, folder)
            for cell in cells:
                what = config, *setting(**CELLS[cell])
                ours, real, held = apart(predicted, *what), apart(measured, *what, folder), apart(resident, *what, folder)
                off, theirs = (100 * (x / real["peak"] - 1) for x in (ours["peak"], 4 * ours["weights"]))
                mib = {"predicted": ours["peak"], "measured": real["peak"], "total": ours["total"], "resident": held["resident"]}
                row = dict(case=f"{name}: {cell}", ours=round(abs(off), 3), peer=round(abs(theirs), 1), peer_name="accelerate estimate-memory",
                           ratio=round(abs(theirs) / max(abs(off), .01), 1), unit="% off", **{k: round(v / 2**20, 2) for k, v in mib.items()})
                rows.append(row | facts)
                print(f"{row['case']:<40} {row['predicted']:>10.1f} {row['measured']:>10.1f} {off:>+6.2f}%  {row['total']:>7.0f} {row['resident']:>9.0f}"
                      + ("" if row["total"] >= row["resident"] else "  DOES NOT FIT"), flush=True)
    off, wrong = [r["ours"] for r in rows], [r["case"] for r in rows if r["total"] < r["resident"]]
    print(f"{len(rows)} cells: off by {statistics.median(off):.2f} % in the median, {max(off):.2f} % at most; said to fit and do not: {', '.join(wrong) or 'none'}")
    if args.json: Path(args.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
