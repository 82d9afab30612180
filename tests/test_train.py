"""The loop: its steps against accumulation and two processes, its checkpoints
against kills, damage and changed inputs."""
import json
import math
import os
import platform
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import tinychat
import torch
from safetensors.torch import load_file

from hfflow.engine import checkpoint, loop, optimizer, progress, settings, steps as steps_, tasks
from hfflow.hub import UserError
from hfflow.engine.attention import packed_attention
from hfflow.engine.loss import batch_tokens
from hfflow.qlora import QloraConfig, add_lora, load_base, load_tokenizer
from hfflow.engine.tasks import encode_rows, task_collate, task_loss
from hfflow.tokens import encode_dataset
from hfflow.engine.checkpoint import find_checkpoint, save_checkpoint
from hfflow.train import TrainConfig, fit, lr_at, plot_loss, threads_for

ROWS = [{"prompt": f"tune model {i} on data {i * 7}", "completion": f"base: m{i}\nrank: {i % 5}" + " x" * (i % 9)} for i in range(30)]
SCRIPT = """
import json, os, signal, sys
from hfflow.engine import loop, steps
from test_train import ROWS, start
base, out, kill, kw = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
advance = loop.Loop.advance
def dying(self):
    if self.step == kill: os.kill(os.getpid(), signal.SIGKILL)
    return advance(self)
loop.Loop.advance = dying
loss = steps.task_loss
def guarded(model, batch, *args):
    if len(batch["cu_seq_lens_q"]) > 2: raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
    return loss(model, batch, *args)
if kw.pop("short", "none") == os.environ.get("RANK"): steps.task_loss = guarded      # this process has room for one row
start(base, out, **kw)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tinychat.save(tmp_path_factory.mktemp("base"))


def start(base, out, rows=ROWS, dropout=0.1, bits=4, dtype=None, eval_rows=ROWS[:6], resume=True, digest="", force=False, rank=4, **kw):
    model, tok = add_lora(load_base(base, bits, dtype=dtype), QloraConfig(rank=rank, dropout=dropout)), load_tokenizer(base)
    cfg = TrainConfig(**{**dict(batch=4, epochs=2, lr=1e-2, save_every=3, threads=1), **kw})
    return fit(model, tok, rows, cfg, out, eval_rows, progress=False, resume=resume, digest=digest, force=force)


def log(out): return [json.loads(line) for line in (Path(out)/"log.jsonl").read_text().splitlines()]
def steps(out): return [(e["step"], e["loss"], e["norm"], e["lr"]) for e in log(out) if "loss" in e]
def held(out): return [(e["step"], e["eval_loss"]) for e in log(out) if "eval_loss" in e]


def sub(base, out, kill=-1, procs=1, **kw):
    code = Path(out).parent/"run.py"
    code.write_text(SCRIPT)
    launch = [sys.executable] if procs == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={procs}"]
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    return subprocess.run([*launch, str(code), str(base), str(out), str(kill), json.dumps(kw)], env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")/"whole"
    return out, start(base, out)


# --- steps

def test_schedules():
    cfg = TrainConfig(lr=1e-3, warmup=.1)
    rates = [lr_at(s, 100, cfg) for s in range(100)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == rates[9] == rates[10] == 1e-3 and 0 < rates[-1] < 2e-5
    assert lr_at(99, 100, TrainConfig(schedule="constant")) == 2e-4 and lr_at(55, 100, TrainConfig(schedule="cosine", warmup=.1)) == pytest.approx(1e-4)


def test_accumulation_is_a_larger_batch(base, tmp_path):
    kw = dict(dropout=0., eval_rows=None, epochs=1)
    one, four = start(base, tmp_path/"a", batch=8, **kw), start(base, tmp_path/"b", batch=2, accumulation=4, **kw)
    assert one.steps == four.steps and one.tokens == four.tokens and one.losses == pytest.approx(four.losses, rel=1e-4)


def test_two_processes_are_one(base, tmp_path):
    """Real data parallelism by torchrun: rank 0 writes, and each step has the loss of one process with the same global batch; when memory runs out in
    one of them, both go on with half."""
    done = sub(base, tmp_path/"two", procs=2, dropout=0., rows=ROWS[:13], short="1")       # 13 rows: the last batch has one row for two processes
    assert done.returncode == 0, done.stderr[-2000:]
    one = start(base, tmp_path/"one", dropout=0., rows=ROWS[:13])
    assert [s[0] for s in steps(tmp_path/"two")] == list(range(1, one.steps + 1))
    assert [s[1] for s in steps(tmp_path/"two")] == pytest.approx(one.losses, rel=1e-3)
    said = [e["event"][:52] for e in log(tmp_path/"two") if "event" in e]       # the second time while evaluating, which takes as many rows per process
    assert said == ["out of memory after 0 steps: 2 rows per forward pass", "out of memory after 4 steps: 1 rows per forward pass"]
    assert held(tmp_path/"two")[-1][1] == pytest.approx(one.eval_losses[-1][1], rel=1e-3)


def test_run_tells_what_it_did(undisturbed):
    out, run = undisturbed
    rows, stats = encode_dataset(ROWS, load_tokenizer(out/"adapter"))
    assert run.steps == 16 == len(run.losses) and run.tokens == 2 * stats.tokens and run.label_tokens == 2 * stats.label_tokens
    assert run.losses[-1] < run.losses[0] and [s for s, _ in run.eval_losses] == [8, 16] and run.device == "cpu" and run.resumed_from is None
    assert run.peak_bytes > 0 and "16 steps" in run._repr_markdown_() and (out/"loss.png").stat().st_size > 5000
    assert {"step", "loss", "lr", "norm", "tokens", "seconds", "memory"} <= set(log(out)[0])
    axes = plot_loss(run).axes[0]
    assert "nats" in axes.get_ylabel() and axes.get_xlabel()
    kept = sorted(p.name for p in (out/"checkpoints").iterdir())
    assert kept == ["step-0000015", "step-0000016"]
    assert not [p for p in out.rglob("*") if p.suffix in (".pt", ".bin", ".pkl", ".pth")]


def test_evaluating_does_not_change_the_losses(base, undisturbed, tmp_path):
    assert start(base, tmp_path, eval_rows=None).losses == undisturbed[1].losses


def test_caller_keeps_its_random_state_and_threads(base, tmp_path):
    torch.manual_seed(11)
    state, n = torch.get_rng_state(), torch.get_num_threads()
    start(base, tmp_path, max_steps=1, eval_rows=None)
    assert torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == n
    assert threads_for(TrainConfig(threads=3)) == 3 and threads_for(TrainConfig(), world=64) == 1


def test_gradients_that_the_caller_left_are_not_used(base, tmp_path):
    kw = dict(cfg=TrainConfig(max_steps=2, batch=4), progress=False)
    clean, dirty = (add_lora(load_base(base), QloraConfig(rank=4)) for _ in range(2))
    tok = load_tokenizer(base)
    for p in dirty.parameters():
        if p.requires_grad: p.grad = torch.ones_like(p)
    assert fit(clean, tok, ROWS, folder=tmp_path/"a", **kw).losses == fit(dirty, tok, ROWS, folder=tmp_path/"b", **kw).losses


# --- never lost

def test_killed_and_resumed_is_bitwise_the_undisturbed_run(base, undisturbed, tmp_path):
    out, run = undisturbed
    assert sub(base, tmp_path/"k", kill=11).returncode == -signal.SIGKILL       # in epoch 2, with evaluation and dropout
    assert log(tmp_path/"k")[-1]["step"] == 11
    again = start(base, tmp_path/"k")
    assert again.resumed_from == 9 and again.losses == run.losses and again.eval_losses == run.eval_losses
    assert steps(tmp_path/"k") == steps(out) and held(tmp_path/"k") == held(out)
    a, b = ((d/"adapter/adapter_model.safetensors").read_bytes() for d in (out, tmp_path/"k"))
    assert a == b and again.tokens == run.tokens
    finished = start(base, tmp_path/"k")                                        # nothing left to do
    assert finished.resumed_from == 16 and finished.losses == run.losses


@pytest.mark.parametrize("harm", ["truncate", "remove", "manifest", "half"])
def test_damaged_checkpoint_falls_back_to_the_one_before(base, undisturbed, tmp_path, harm):
    import shutil
    out, run = undisturbed
    shutil.copytree(out, tmp_path/"r")
    last = tmp_path/"r/checkpoints/step-0000016"
    if harm == "truncate": (last/"optimizer.safetensors").write_bytes((last/"optimizer.safetensors").read_bytes()[:-9])
    if harm == "remove": (last/"adapter.safetensors").unlink()
    if harm == "manifest": (last/"manifest.json").write_text("[")
    if harm == "half": last.rename(last.with_name(".staging-999"))
    again = start(base, tmp_path/"r")
    assert again.resumed_from == 15 and again.losses == run.losses
    said = [e["event"] for e in log(tmp_path/"r") if "event" in e]
    assert "resumed" in said and (harm == "half" or any("step-0000016 is damaged" in s for s in said))
    assert not list((tmp_path/"r/checkpoints").glob(".staging*"))


@pytest.mark.parametrize("change,name", [(dict(lr=2e-2), "lr"), (dict(rows=ROWS[::-1]), "data"), (dict(digest="other"), "digest"), (dict(seed=1), "seed"),
                                         (dict(bits=32), "base")])
def test_another_run_is_refused_by_name(base, undisturbed, tmp_path, change, name):
    import shutil
    shutil.copytree(undisturbed[0], tmp_path/"r")
    with pytest.raises(UserError, match=f"made with another .*{name}.*resume=False"): start(base, tmp_path/"r", **change)
    assert steps(tmp_path/"r") == steps(undisturbed[0])


def test_a_checkpoint_from_before_a_setting_existed_is_taken(base, tmp_path, monkeypatch):
    now = settings.computed
    monkeypatch.setattr(loop, "computed", lambda cfg: {k: v for k, v in now(cfg).items() if k != "label_smoothing"})
    start(base, tmp_path, max_steps=3)
    monkeypatch.setattr(loop, "computed", now)
    with pytest.raises(UserError, match="another label_smoothing"): start(base, tmp_path, max_steps=3, label_smoothing=.1)
    assert start(base, tmp_path, max_steps=3).resumed_from == 3


def test_starting_anew_forgets_the_old_run(base, undisturbed, tmp_path):
    import shutil
    shutil.copytree(undisturbed[0], tmp_path/"r")
    run = start(base, tmp_path/"r", resume=False, max_steps=2, eval_rows=None)
    assert run.steps == 2 and run.resumed_from is None and len(log(tmp_path/"r")) == 2


@pytest.mark.parametrize("number,raises", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_interrupt_writes_a_checkpoint_and_goes_on_later(base, undisturbed, tmp_path, monkeypatch, number, raises):
    advance = loop.Loop.advance
    def interrupted(self):
        if self.step == 4 and self.resumed_from is None: os.kill(os.getpid(), number)
        return advance(self)
    monkeypatch.setattr(loop.Loop, "advance", interrupted)
    handler = signal.getsignal(number)
    with pytest.raises(raises): start(base, tmp_path/"r")
    assert find_checkpoint(tmp_path/"r/checkpoints")[0].name == "step-0000005" and signal.getsignal(number) is handler
    again = start(base, tmp_path/"r")
    assert again.resumed_from == 5 and again.losses == undisturbed[1].losses


def test_an_interrupt_in_the_last_step_is_heard(base, undisturbed, tmp_path, monkeypatch):
    "What comes after the training, such as publishing, must not go on over a Ctrl-C."
    total, advance = undisturbed[1].steps, loop.Loop.advance
    def interrupted(self):
        if self.step == total - 1 and self.resumed_from is None: os.kill(os.getpid(), signal.SIGINT)
        return advance(self)
    monkeypatch.setattr(loop.Loop, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt): start(base, tmp_path/"r")
    again = start(base, tmp_path/"r")
    assert again.resumed_from == total and again.losses == undisturbed[1].losses


def test_full_disk_leaves_the_checkpoints_that_are_there(tmp_path, monkeypatch):
    import safetensors.torch as st
    tensors = {"a.safetensors": {"x": torch.ones(3)}}
    save_checkpoint(tmp_path, 1, tensors, {})
    def full(*a, **k): raise OSError(28, "No space left on device")
    monkeypatch.setattr(st, "save_file", full)
    with pytest.raises(UserError, match="step 2 needs .* disk is full"): save_checkpoint(tmp_path, 2, tensors, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000001"] and find_checkpoint(tmp_path) == (tmp_path/"step-0000001", [])


# --- bad input

def test_loss_that_is_no_number_stops_before_the_weights(base, tmp_path):
    model, tok = add_lora(load_base(base), QloraConfig(rank=4)), load_tokenizer(base)
    spoiled = next(p for n, p in model.named_parameters() if "lora_B" in n)
    spoiled.data[0, 0] = float("nan")
    others = {n: p.clone() for n, p in model.named_parameters() if p.requires_grad and p is not spoiled}
    with pytest.raises(UserError, match="loss is nan at step 1 .*lower lr"): fit(model, tok, ROWS, TrainConfig(), tmp_path, progress=False)
    assert all(torch.equal(p, others[n]) for n, p in model.named_parameters() if n in others)


@pytest.mark.parametrize("env, many", [({"WORLD_SIZE": "2"}, "2"), ({"SLURM_STEP_NUM_TASKS": "4"}, "4"),
                                      ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, "Several")])
def test_processes_that_would_train_alone_are_refused(base, tmp_path, monkeypatch, env, many):
    for k, v in env.items(): monkeypatch.setenv(k, v)
    with pytest.raises(UserError, match=f"^{many} processes .* torchrun"): start(base, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_refusals(base, tmp_path):
    model, tok = load_base(base).requires_grad_(False), load_tokenizer(base)
    with pytest.raises(UserError, match="add_lora first"): fit(model, tok, ROWS, TrainConfig(), tmp_path, progress=False)
    with pytest.raises(UserError, match="no token to learn from"): start(base, tmp_path, rows=[])
    with pytest.raises(UserError, match="no token to learn from"): start(base, tmp_path, rows=[{"messages": [{"role": "user", "content": "x"}]}])
    for kw, words in ((dict(epochs=0), "epochs is 0"), (dict(lr=2.), "lr is 2"), (dict(schedule="fast"), "schedule is 'fast'"), (dict(warmup=3.), "warmup is 3"),
                      (dict(max_steps=0), "max_steps is 0"), (dict(tracker="x"), "tracker is 'x'"), (dict(lrr=1), "nearest is 'lr'")):
        with pytest.raises(UserError, match=words): TrainConfig(**kw)


def test_end_of_answer_is_learned(base, tmp_path):
    """After fitting two rows by heart, generation gives the answer and stops."""
    model, tok = add_lora(load_base(base), QloraConfig(rank=16)), load_tokenizer(base)
    fit(model, tok, ROWS[:2], TrainConfig(batch=2, max_steps=60, lr=2e-2, warmup=.1), tmp_path, progress=False)
    from hfflow.tokens import prompt_text
    ids = tok(prompt_text(ROWS[1]["prompt"], tok), return_tensors="pt", add_special_tokens=False).input_ids
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False)[0, ids.shape[1]:]
    assert tok.decode(out) == ROWS[1]["completion"] + tok.eos_token


def test_gradient_checkpointing_gives_the_same_losses(base, tmp_path):
    kw = dict(dropout=0., eval_rows=None, max_steps=3)
    assert start(base, tmp_path/"a", checkpointing=True, **kw).losses == pytest.approx(start(base, tmp_path/"b", **kw).losses, rel=1e-5)


def test_activations_that_wait_elsewhere_give_the_same_gradients(base):
    model = add_lora(load_base(base), QloraConfig(rank=4)).train()
    rows = encode_rows(ROWS[:8], load_tokenizer(base), model, 512)[0]
    batch, copies = task_collate(rows, 0, model), []
    def grads(least):
        model.zero_grad()
        with packed_attention(model):
            with optimizer.offloaded(torch.device("cpu"), least): loss = task_loss(model, batch)[0]
            loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]
    want = grads(math.inf)
    real = torch.Tensor.copy_
    try:
        torch.Tensor.copy_ = lambda self, other, *a, **k: copies.append(other.shape) or real(self, other, *a, **k)
        got = grads(1)
        saved = len(copies)
        model.gradient_checkpointing_enable({"use_reentrant": True})
        model.enable_input_require_grads()
        again = grads(1)
    finally: torch.Tensor.copy_ = real
    assert saved > 20 and all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert 2 <= len(copies) - saved < saved / 3                                 # the layers' inputs, and what the loss keeps
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(again, want, strict=True))


# --- memory

def small_memory(monkeypatch, most, error=torch.OutOfMemoryError):
    """A device on which a forward pass of more than `most` tokens runs out of memory."""
    loss, tries = tasks.task_loss, []
    def guarded(model, batch, *smoothing):
        tries.append(n := batch_tokens(batch))
        if n > most: raise error("CUDA out of memory") if error is not RuntimeError else error("DefaultCPUAllocator: can't allocate memory: you tried")
        return loss(model, batch, *smoothing)
    monkeypatch.setattr(steps_, "task_loss", guarded)
    return tries


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_steps(base, tmp_path, monkeypatch, error):
    kw = dict(batch=8, accumulation=2, dropout=0., max_steps=3)
    whole = start(base, tmp_path/"whole", **kw)
    tries = small_memory(monkeypatch, 100, error)
    small = start(base, tmp_path/"small", **kw)
    assert small.losses == pytest.approx(whole.losses, rel=1e-4) and (small.tokens, small.label_tokens) == (whole.tokens, whole.label_tokens)
    assert small.eval_losses[0][1] == pytest.approx(whole.eval_losses[0][1], rel=1e-4) and max(tries) > 100
    said = [e["event"] for e in log(tmp_path/"small") if "event" in e]
    assert len(said) >= 2 and said[0] == "out of memory after 0 steps: 4 rows per forward pass and 4 passes per step from here on, which gives the same steps"


def test_resume_after_out_of_memory_is_exact(base, tmp_path, monkeypatch):
    """The checkpoint knows the micro-batch: with dropout on, another one would draw another mask."""
    small_memory(monkeypatch, 100)
    whole = start(base, tmp_path/"whole", batch=8)
    advance = loop.Loop.advance
    def cut(self):
        if self.step == 4 and not self.resumed_from: raise InterruptedError
        return advance(self)
    monkeypatch.setattr(loop.Loop, "advance", cut)
    with pytest.raises(InterruptedError): start(base, tmp_path/"r", batch=8)
    monkeypatch.undo()                                        # a larger machine now
    again = start(base, tmp_path/"r", batch=8)
    assert again.resumed_from == 4 and again.losses == whole.losses
    said = [e["event"] for e in log(tmp_path/"r") if "event" in e]
    assert said[-1] == "resumed" and any("out of memory" in s for s in said)


def test_memory_that_never_suffices_is_a_sentence(base, tmp_path, monkeypatch):
    small_memory(monkeypatch, 3)
    with pytest.raises(UserError, match="Memory ran out after 0 steps with 1 rows .*lower batch.*max_len"): start(base, tmp_path, max_steps=2)
    monkeypatch.undo()
    monkeypatch.setattr(steps_, "task_loss", lambda *a: (_ for _ in ()).throw(RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"): start(base, tmp_path, max_steps=2)


# --- explosion, loss scaling

def test_rows_of_a_broken_batch_are_named(base, tmp_path, monkeypatch):
    loss = tasks.task_loss
    wanted = encode_dataset(ROWS, load_tokenizer(base))[0][7]["input_ids"]
    def broken(model, batch, *smoothing):
        total, n = loss(model, batch, *smoothing)
        ids = batch["input_ids"].flatten().tolist()
        hit = any(ids[i:i+len(wanted)] == wanted for i in range(len(ids)))
        return total * float("inf") if hit else total, n
    monkeypatch.setattr(steps_, "task_loss", broken)
    with pytest.raises(UserError, match="loss is inf at step .* look at rows ") as e: start(base, tmp_path, eval_rows=None)
    named = str(e.value).split("look at rows ")[1].split(" of the encoded")[0].split(", ")
    assert "7" in named and len(named) <= 4 and any("rows " in e.get("event", "") for e in log(tmp_path))


@pytest.mark.parametrize("steps", [3, 99])
def test_an_explosion_stops_a_spike_does_not(base, tmp_path, monkeypatch, steps):
    loss = tasks.task_loss
    def rising(model, batch, *smoothing):
        total, n = loss(model, batch, *smoothing)
        return total + (500 * n if 20 < step[0] <= 20 + steps and model.training else 0), n
    advance, step = loop.Loop.advance, [0]
    def counted(self):
        step[0] = self.step
        return advance(self)
    monkeypatch.setattr(steps_, "task_loss", rising)
    monkeypatch.setattr(loop.Loop, "advance", counted)
    if steps < 5:
        assert start(base, tmp_path, max_steps=30, batch=2).steps == 30 and not any("usual" in e.get("event", "") for e in log(tmp_path))
        return
    with pytest.raises(UserError, match=r"loss has been 5\d\d or more for 5 steps, from step 22 on, where .* lower lr .* rows \d+, \d+ of the"):
        start(base, tmp_path, max_steps=30, batch=2)
    said = [e["event"] for e in log(tmp_path) if "usual" in e.get("event", "")]
    assert len(said) == 1 and len([e for e in log(tmp_path) if "loss" in e]) == 26
    # a run resumed from before it goes on there, and meets it again
    monkeypatch.setattr(steps_, "task_loss", loss)
    assert start(base, tmp_path, max_steps=30, batch=2).steps == 30


def test_fp16_skips_the_steps_whose_scaled_gradient_is_infinite(base, tmp_path, monkeypatch):
    """A scaler that begins far too high: steps are skipped, and not the ones after it has come down."""
    made, accelerator = [], optimizer.make_accelerator
    def scaled(model, shard):
        acc = accelerator(model, shard)
        acc.state._mixed_precision, acc.native_amp, acc.scaler = "fp16", True, torch.amp.GradScaler("cpu", init_scale=2.**126, backoff_factor=2.**-60)
        made.append(acc)
        return acc
    monkeypatch.setattr(steps_, "make_accelerator", scaled)
    kw = dict(dropout=0., eval_rows=None, warmup=0., schedule="constant", max_steps=8, dtype=torch.float16)
    try:
        run = start(base, tmp_path/"s", **kw)
        again = start(base, tmp_path/"s", **kw)
    finally:
        made[0].state._mixed_precision = "no"
    norms = [e["norm"] for e in log(tmp_path/"s") if "loss" in e]
    assert norms[0] is None and norms[-1] is not None and run.losses[-1] < run.losses[0] and again.losses == run.losses
    assert "Infinity" not in (tmp_path/"s/log.jsonl").read_text()


# --- schedules, noise, progress

def test_wsd_stays_and_falls_at_the_end():
    cfg = TrainConfig(lr=1e-3, warmup=.1, schedule="wsd", decay=.25)
    rates = [lr_at(s, 100, cfg) for s in range(100)]
    assert rates[0] == pytest.approx(1e-4) and set(rates[9:76]) == {1e-3} and rates[75:] == sorted(rates[75:], reverse=True) and rates[-1] == pytest.approx(1e-3 / 25)
    assert lr_at(99, 100, TrainConfig(schedule="wsd", decay=0.)) == 2e-4
    with pytest.raises(UserError, match="decay is 2"): TrainConfig(decay=2)


def test_neftune_is_noise_on_training_embeddings_alone(base, tmp_path):
    kw = dict(dropout=0., max_steps=6)
    plain, noisy = start(base, tmp_path/"p", **kw), start(base, tmp_path/"n", neftune_alpha=5., **kw)
    assert noisy.losses != plain.losses and noisy.losses == pytest.approx(plain.losses, rel=.5)
    assert start(base, tmp_path/"m", neftune_alpha=5., **kw).losses == noisy.losses
    model = load_base(base)
    table, (a, b) = model.get_input_embeddings(), (5, 20)
    with optimizer.neftune(model.train(), 8.) as tell:
        tell({"cu_seq_lens_q": torch.tensor([0, a, a + b])})
        ids = torch.arange(a + b)[None]
        off = (table(ids) - table.weight[ids]).abs()[0]
        for part, n in ((off[:a], a), (off[a:], b)): assert .8 < part.max() / (8 / (n * off.shape[-1]) ** .5) <= 1.001
        model.eval()
        assert torch.equal(table(ids), table.weight[ids])
    assert torch.equal(model.train().get_input_embeddings()(ids), table.weight[ids])


@pytest.mark.parametrize("word,pip", [("trackio", r"'hfflow\[track\]'"), ("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_trackers_by_one_word(base, tmp_path, monkeypatch, word, pip):
    import importlib.util as util
    from accelerate import tracking
    monkeypatch.setattr(util, "find_spec", lambda name, *a, found=util.find_spec: None if name == word else found(name, *a))
    with pytest.raises(UserError, match=f"pip install {pip}, or"): start(base, tmp_path/"x", tracker=word, max_steps=1)
    monkeypatch.undo()
    calls, kind = [], getattr(tracking, settings.trackers[word])
    monkeypatch.setattr(util, "find_spec", lambda name, *a, found=util.find_spec: True if name == word else found(name, *a))
    for name in ("start", "store_init_configuration", "log", "finish"):
        monkeypatch.setattr(kind, name, lambda self, *a, name=name, **kw: calls.append((name, a, kw)))
    start(base, tmp_path/"y", tracker=word, max_steps=2)
    assert [c[0] for c in calls] == ["start", "store_init_configuration", "log", "log", "log", "finish"]
    assert calls[2][1][0]["loss"] > 0 and calls[4][1][0]["eval_loss"] > 0 and calls[4][2] == {"step": 2} and None not in calls[1][1][0].values()
    def refused(self): raise RuntimeError("no login\nmore")
    monkeypatch.setattr(kind, "start", refused)
    with pytest.raises(UserError, match=rf"{word}, which does not start \(no login\): .*leave tracker out"): start(base, tmp_path/"z", tracker=word, max_steps=1)


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder/"tensorboard")).Reload()
    return {k: [(e.step, e.value) for e in events.Scalars(k)] for k in events.Tags()["scalars"]}


def read_trackio(folder):
    from trackio.sqlite_storage import SQLiteStorage
    rows = SQLiteStorage.get_logs("hfflow", folder.name)
    return {k: [(r["step"], r[k]) for r in rows if k in r] for k in {k for r in rows for k in r} - {"step", "timestamp"}}


def read_wandb(folder):
    """Its files are those of LevelDB's log: blocks of 32 KiB, records of (checksum, length, kind), kinds 2 and 3 go on."""
    from wandb.proto.wandb_internal_pb2 import Record
    found = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        raw, pos, whole = path.read_bytes(), 7, b""
        while pos + 7 <= len(raw):
            if (left := 2**15 - pos % 2**15) < 7: pos += left
            _, n, kind = struct.unpack_from("<IHB", raw, pos)
            whole, pos = whole + raw[pos+7:pos+7+n], pos + 7 + n
            if kind in (2, 3): continue
            history, whole = Record.FromString(whole).history, b""
            for item in history.item: found.setdefault("/".join(item.nested_key) or item.key, []).append((history.step.num, json.loads(item.value_json)))
    return found


@pytest.mark.parametrize("word", list(settings.trackers))
def test_trackers_hold_what_the_log_holds(base, tmp_path, monkeypatch, word):
    """Where they are installed, for real: dead in step 4, after the checkpoint of step 2, resumed from there, and read back."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path/"trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    pytest.importorskip(word)
    out, turn = tmp_path/f"run-{tmp_path.name}", loop.Loop.turn
    def dies(self, memory):
        if self.step == 3: raise KeyboardInterrupt
        return turn(self, memory)
    with monkeypatch.context() as m:
        m.setattr(loop.Loop, "turn", dies)
        with pytest.raises(KeyboardInterrupt): start(base, out, tracker=word, max_steps=5, save_every=2)
    assert start(base, out, tracker=word, max_steps=5, save_every=2).resumed_from == 2
    got = globals()[f"read_{word}"](out)
    for key, expected in (("loss", [(s, l) for s, l, *_ in steps(out)]), ("eval_loss", held(out)), ("lr", [(s, lr) for s, _, _, lr in steps(out)])):
        # TensorBoard hides what was done in vain, the others show it twice
        assert len(got[key]) == len(expected) + (word != "tensorboard" and key != "eval_loss")
        assert dict(got[key]) == pytest.approx(dict(expected))
    assert {"norm", "tokens", "seconds", "memory"} <= got.keys() and got.keys().isdisjoint(("step", "__step"))
    assert dict(got["tokens_per_second"]).keys() == {1, 2, 3, 4, 5} and all(v > 0 for _, v in got["tokens_per_second"])


def test_the_bar_shows_memory_against_the_plan(base, tmp_path, monkeypatch):
    import io
    from tqdm import tqdm
    text = io.StringIO()
    monkeypatch.setattr(progress, "progress_bar", lambda total, done, wanted: tqdm(total=total, initial=done, file=text, mininterval=0, ncols=200))
    model, tok = add_lora(load_base(base), QloraConfig(rank=4)), load_tokenizer(base)
    fit(model, tok, ROWS, TrainConfig(max_steps=2, threads=1), tmp_path, planned_bytes=700 * 2**20)
    assert "of 700 MiB" in text.getvalue() and "tokens/s" in text.getvalue() and "loss " in text.getvalue()


def test_a_notebook_shows_the_curve_while_it_trains(base, tmp_path):
    import nbformat
    from nbclient import NotebookClient
    here = Path(__file__).parent
    cell = nbformat.v4.new_code_cell(f"""import sys; sys.path[:0] = [{str(here.parent)!r}]
from hfflow import qlora, train
from hfflow.engine import progress
progress.Curve.__init__.__defaults__ = (0.,)
base, rows = {str(base)!r}, {ROWS!r}
train.fit(qlora.add_lora(qlora.load_base(base), qlora.QloraConfig(rank=4)), qlora.load_tokenizer(base), rows,
          train.TrainConfig(max_steps=6, threads=1), {str(tmp_path / 'out')!r})""")
    NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=120).execute()
    pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 1 and "steps in" in str(cell.outputs[-1])           # one picture, drawn over again


# --- other optimizers and losses

PAGES = """
import resource, torch
from hfflow.engine.progress import kept_pages
def faults():
    "The fewest of several: something small may have taken the place of the last one."
    return min(one() for _ in range(5))
def one():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)                      # 64 MiB, which glibc gives back at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
with kept_pages(torch.device("cuda")): other = faults()       # a GPU's memory is another matter
with kept_pages(torch.device("cpu")): kept = faults()
print(plain, other, kept)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the thresholds")
def test_pages_stay_with_the_process_while_it_trains():
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, timeout=120)
    plain, other, kept = map(int, done.stdout.split())
    assert kept * 4 < plain and kept * 4 < other


def test_resume_with_the_optimizer_of_8_bits_is_exact(base, tmp_path):
    kw = dict(optimizer="adamw8bit", max_steps=8, epochs=2)
    whole = start(base, tmp_path/"whole", **kw, rank=128)
    assert sub(base, tmp_path/"k", kill=5, **kw, rank=128).returncode == -signal.SIGKILL
    again = start(base, tmp_path/"k", **kw, rank=128)
    assert again.resumed_from == 3 and again.losses == whole.losses
    state = load_file(tmp_path/"k/checkpoints"/checkpoint.step_name(8)/"optimizer.safetensors")
    assert any(t.dtype == torch.uint8 for t in state.values())


def test_smoothed_labels_cost_a_little_and_learn(base, tmp_path):
    plain, smooth = (start(base, tmp_path/str(s), label_smoothing=s, dropout=0.) for s in (0., .1))
    assert smooth.losses[0] > plain.losses[0] and smooth.losses[-1] < smooth.losses[0]
    assert abs(smooth.eval_losses[0][1] - plain.eval_losses[0][1]) < .5         # held-out losses stay plain, to be compared


# --- another number of processes

def test_one_process_then_two_then_one(base, tmp_path, monkeypatch):
    kw, advance = dict(dropout=0., rows=ROWS[:20]), loop.Loop.advance
    whole = start(base, tmp_path/"whole", **kw)
    def cut(self):
        if self.step == 4: raise InterruptedError
        return advance(self)
    monkeypatch.setattr(loop.Loop, "advance", cut)
    with pytest.raises(InterruptedError): start(base, tmp_path/"r", **kw)
    assert sub(base, tmp_path/"r", procs=2, kill=7, **kw).returncode != 0
    monkeypatch.setattr(loop.Loop, "advance", advance)
    assert find_checkpoint(tmp_path/"r/checkpoints")[0].name == "step-0000006"
    again = start(base, tmp_path/"r", **kw)
    assert again.resumed_from == 6 and again.losses == pytest.approx(whole.losses, rel=1e-3) and again.eval_losses[-1][1] == pytest.approx(whole.eval_losses[-1][1], rel=1e-3)
