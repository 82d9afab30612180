"""Checkpoints: which are kept, whose they are, the way to the Hub and back, and trainings killed at random moments.

`HFFLOW_TRAIN_KILLS=n` sets the number of kills; the nightly run of CI asks for 50.
"""
import json
import os
import random
import time
from pathlib import Path

import pytest
import tinychat
import torch
from test_train import ROWS, held, log, start, steps
from trainer import Nursery

from hfflow.engine import checkpoint, loop
from hfflow.engine.checkpoint import Pusher, changed, damage, find_checkpoint, pull_checkpoint, save_checkpoint, versions
from hfflow.hub import UserError

KILLS = int(os.environ.get("HFFLOW_TRAIN_KILLS", 5))
HARD = dict(rows=ROWS[:18], epochs=2, batch=2, accumulation=2, save_every=2)       # 10 steps, evaluation, dropout


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tinychat.save(tmp_path_factory.mktemp("base"))


def adapter(out): return (Path(out)/"adapter/adapter_model.safetensors").read_bytes()
def names(folder): return sorted(p.name for p in Path(folder).iterdir())
def tensors(x=1.): return {"a.safetensors": {"x": torch.full((3,), x)}}


# --- kills at random moments

@pytest.fixture(scope="module")
def nursery():
    made = Nursery()
    yield made
    made.close()


@pytest.mark.timeout(3600)
def test_killed_at_random_moments_is_bitwise_the_undisturbed_run(base, nursery, tmp_path):
    """Every second kill comes after a random time, the others with a random call that changes a file: within a checkpoint, a line of the log, a removal."""
    timed = nursery.train(base, tmp_path/"timed", **HARD)
    whole = nursery.train(base, tmp_path/"whole", calls=-1, **HARD)
    assert whole["code"] == timed["code"] == 0 and whole["calls"] > 100, whole
    assert adapter(tmp_path/"timed") == adapter(tmp_path/"whole")
    rng, kills, runs = random.Random(time.time_ns()), [], 0
    while len(kills) < KILLS:
        out, here, left = tmp_path/f"run-{runs}", [], rng.randint(1, 3)
        while True:
            how = {} if len(here) == left or len(kills) == KILLS else \
                dict(after=rng.uniform(0, timed["seconds"])) if len(kills) % 2 else dict(calls=rng.randint(1, whole["calls"]))
            done = nursery.train(base, out, **how, **HARD)
            if not done["killed"]: break
            here.append(how)
            kills.append(how)
        assert done["code"] == 0, here
        assert steps(out) == steps(tmp_path/"whole") and held(out) == held(tmp_path/"whole"), here
        assert adapter(out) == adapter(tmp_path/"whole") and names(out/"checkpoints") == names(tmp_path/"whole/checkpoints"), here
        runs += 1
    print(f"{len(kills)} kills in {runs} runs")


# --- which are kept

def test_the_best_outlives_the_last_few(tmp_path):
    for step in range(1, 7): save_checkpoint(tmp_path, step, tensors(), {}, keep=2, best=2 if step > 1 else 1)
    assert names(tmp_path) == ["step-0000002", "step-0000005", "step-0000006"]
    save_checkpoint(tmp_path, 7, tensors(), {}, keep=1, best=7)
    assert names(tmp_path) == ["step-0000007"] and not damage(tmp_path/"step-0000007")


def test_the_adapter_of_the_best_is_taken(base, tmp_path):
    """Held-out rows of another kind: their loss falls, then rises, so that the best is not the last."""
    odd = [{"prompt": "ZQ", "completion": "WVUT KJHG"}]
    kw = dict(rows=ROWS[:12], eval_rows=odd, epochs=10, lr=.02, warmup=0., schedule="constant", keep=1, save_every=2)
    last, best = start(base, tmp_path/"last", **kw), start(base, tmp_path/"best", load_best=True, **kw)
    step, loss = best.best
    assert (step, loss) == min(best.eval_losses, key=lambda e: e[1]) == last.best and step < best.steps and best.losses == last.losses
    assert names(tmp_path/"best/checkpoints") == [f"step-{step:07d}", f"step-{best.steps:07d}"]
    from safetensors.torch import load, load_file
    kept = load_file(tmp_path/f"best/checkpoints/step-{step:07d}/adapter.safetensors")
    for made, same in ((load(adapter(tmp_path/"best")), True), (load(adapter(tmp_path/"last")), False)):
        assert all(torch.equal(t, kept[k.replace(".weight", ".default.weight")]) for k, t in made.items()) is same
    assert any(f"that of step {step}" in e.get("event", "") for e in log(tmp_path/"best"))
    (tmp_path/f"best/checkpoints/step-{step:07d}/adapter.safetensors").unlink()
    again = start(base, tmp_path/"best", load_best=True, **kw)                     # nothing to do, but the best is gone
    assert again.best == best.best and adapter(tmp_path/"best") == adapter(tmp_path/"last")
    assert "the best, is damaged" in log(tmp_path/"best")[-1]["event"]
    with pytest.raises(UserError, match="load_best needs held-out rows"): start(base, tmp_path/"none", load_best=True, eval_rows=None)


# --- whose it is

def test_changed_names_what_differs():
    one = {"data": "a", "base": {"name": "x"}, "config": {"lr": 1., "seed": 0}, "code": {"torch": "2.1", "peft": "1"}}
    assert changed(one, one) == [] and changed({}, one) == ["data", "base", "config", "code"]
    assert changed(one, one | {"config": {"lr": 2., "decay": .2}, "base": {}}) == ["base", "lr", "decay", "seed"]
    assert changed(one, one | {"code": {"torch": "2.2"}}) == ["torch (2.1, now 2.2)", "peft (1, now None)"]
    assert "+" not in versions()["torch"]


def test_other_code_is_refused_by_name_unless_forced(base, tmp_path, monkeypatch):
    kw = dict(epochs=1, rows=ROWS[:12], eval_rows=None, save_every=1)
    whole = start(base, tmp_path/"whole", **kw)
    out, advance = tmp_path/"r", loop.Loop.advance
    def cut(self):
        if self.step == 2: raise InterruptedError
        return advance(self)
    monkeypatch.setattr(loop.Loop, "advance", cut)
    with pytest.raises(InterruptedError): start(base, out, **kw)
    monkeypatch.setattr(loop.Loop, "advance", advance)
    monkeypatch.setattr(loop, "versions", lambda: versions() | {"torch": "9.9"})
    with pytest.raises(UserError, match=r"another torch \(.*, now 9.9\).*resume=False.*force=True"): start(base, out, **kw)
    forced = start(base, out, force=True, **kw)
    assert forced.resumed_from == 2 and forced.losses == whole.losses
    assert any(e.get("event", "").startswith("forced on, though made with another torch") for e in log(out))


# --- on the Hub

@pytest.fixture
def repo(request):
    from hfflow import hub
    hub.connect()
    return "you/" + request.node.name.replace("_", "-")


def branch(repo, revision="checkpoints"):
    from huggingface_hub import HfApi
    return sorted({f.split("/")[0] for f in HfApi().list_repo_files(repo, revision=revision)} - {".gitattributes"})


def test_another_machine_goes_on_from_the_branch(base, repo, tmp_path, monkeypatch):
    whole = start(base, tmp_path/"whole")
    advance = loop.Loop.advance
    def lost(self):
        if self.step == 13: raise InterruptedError
        return advance(self)
    monkeypatch.setattr(loop.Loop, "advance", lost)
    with pytest.raises(InterruptedError): start(base, tmp_path/"here", push_to=repo)
    monkeypatch.setattr(loop.Loop, "advance", advance)
    assert branch(repo) == ["log.jsonl", "step-0000008", "step-0000012"]            # the best and the newest
    there = start(base, tmp_path/"there", push_to=repo)
    assert there.resumed_from == 12 and there.losses == whole.losses and there.eval_losses == whole.eval_losses
    assert adapter(tmp_path/"there") == adapter(tmp_path/"whole") and steps(tmp_path/"there") == steps(tmp_path/"whole")
    assert branch(repo) == ["log.jsonl", "step-0000016"] and names(tmp_path/"there/checkpoints") == ["step-0000015", "step-0000016"]
    third = start(base, tmp_path/"third", resume=repo + "@checkpoints")
    assert third.resumed_from == 16 and third.losses == whole.losses
    from huggingface_hub import HfApi
    assert HfApi().model_info(repo).private and not [f for f in HfApi().list_repo_files(repo) if f.startswith("step")]
    with pytest.raises(UserError, match="no checkpoint at you/nowhere"): start(base, tmp_path/"n", resume="you/nowhere")


def test_a_push_that_fails_is_told_and_made_good(repo, tmp_path, monkeypatch):
    said, commit = [], checkpoint.Branch.commit
    monkeypatch.setattr(checkpoint.Branch, "commit", lambda self, snap: (_ for _ in ()).throw(ConnectionError("the line is down")))
    pusher = Pusher(repo + "@run-1", tmp_path, said.append)
    (tmp_path/"log.jsonl").write_text("")
    for step in (1, 2):
        save_checkpoint(tmp_path/"checkpoints", step, tensors(step), {})
        start_ = time.perf_counter()
        pusher.put([step])
        assert time.perf_counter() - start_ < 1
        while len(said) < step: time.sleep(.01)
    assert said[0] == f"checkpoint step-0000001 was not pushed to {repo}: the line is down"
    monkeypatch.setattr(checkpoint.Branch, "commit", commit)
    pusher.close()
    assert branch(repo, "run-1") == ["log.jsonl", "step-0000002"] and names(tmp_path/"checkpoints") == ["step-0000001", "step-0000002"]
    assert pull_checkpoint(repo + "@run-1", tmp_path/"new") == "step-0000002" and find_checkpoint(tmp_path/"new/checkpoints")[1] == []


def test_only_the_newest_waits(repo, tmp_path, monkeypatch):
    import threading
    free, sent = threading.Event(), []
    def slow(self, snap):
        free.wait(20)
        sent.append((snap.name, names(snap)))
    monkeypatch.setattr(checkpoint.Branch, "commit", slow)
    pusher = Pusher(repo, tmp_path, print)
    (tmp_path/"log.jsonl").write_text("")
    for step in range(1, 6):
        save_checkpoint(tmp_path/"checkpoints", step, tensors(), {}, keep=1, best=1)
        pusher.put([1, step])
        if step == 1:
            while pusher.next: time.sleep(.01)
    free.set()
    pusher.close()
    assert [n for n, _ in sent] == [".push-1", ".push-5"]
    assert sent[1][1] == ["log.jsonl", "step-0000001", "step-0000005"] and names(tmp_path/"checkpoints") == ["step-0000001", "step-0000005"]


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/../x", "", "me/mo del"])
def test_a_target_that_is_none_is_refused(name):
    from hfflow.train import TrainConfig
    with pytest.raises(UserError, match="names no repo" if name else "must not be empty"): TrainConfig(push_to=name)
