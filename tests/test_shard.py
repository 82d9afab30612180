"""A base split over two real processes learns what a whole one learns, in half of the memory, and is whole again afterwards."""
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tinychat
import torch
import zoo

from hfflow.engine import loop, training
from hfflow.hub import UserError
from hfflow.qlora import QloraConfig, add_lora, load_base, load_tokenizer
from hfflow.engine.shard import held_bytes, refuse_shard, shard_units, sharded
from hfflow.engine.tasks import encode_rows, task_collate, task_loss
from hfflow.train import TrainConfig, fit

ROWS = [{"prompt": f"tune model {i} on data {i * 7}", "completion": f"base: m{i}\nrank: {i % 5}" + " x" * (i % 9)} for i in range(13)]
# what two processes train: base, and settings; BOTH ways, with a whole base and with a split one, where one process is no measure
BOTH = {"nf4": ("chat", dict(accumulation=2, epochs=2, load_best=True)),
        "dropout": ("chat", dict(lora=dict(dropout=.2), checkpointing=True)),
        "bf16": ("chat", dict(bits=16, dtype="bfloat16"))}
SPLIT = {"fp32": ("chat", dict(bits=32)),
         "checkpointing": ("chat", dict(checkpointing=True)),
         "dora": ("chat", dict(lora=dict(dora=True))),
         **{kind: (kind, dict(max_steps=2, checkpointing=kind == "mixtral")) for kind in ("gpt2", "gemma3", "bert", "t5", "mixtral")}}
NO_DROPOUT = dict.fromkeys(("resid_pdrop", "attn_pdrop", "embd_pdrop", "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate"), 0.)


def rows_of(kind):
    if kind == "chat": return ROWS
    g = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, zoo.VOCAB, (5 + i % 7,), generator=g).tolist() for i in range(13)]
    if kind in zoo.CLASSIFY: return [{"input_ids": x, "label": i % 3} for i, x in enumerate(ids)]
    return [{"input_ids": x, "labels": x} for x in ids]


def start(folder, out, kind="chat", shard=False, bits=4, lora=(), dtype=None, **kw):
    """Train; the model, the run, and the loss of the model as it is afterwards."""
    model, tok = add_lora(load_base(folder/kind, bits, dtype=dtype and getattr(torch, dtype)), QloraConfig(rank=4, **dict(lora))), load_tokenizer(folder/"chat")
    rows = rows_of(kind)
    cfg = TrainConfig(**{**dict(batch=4, epochs=1, lr=1e-2, threads=1, shard=shard), **kw})
    run = fit(model, tok, rows, cfg, out, rows[:9], progress=False)       # the ninth row is of the first process alone
    if kind == "chat": rows = encode_rows(rows, tok, model)[0]
    with torch.no_grad(): return model, run, float(task_loss(model, task_collate(rows[:4], tok.pad_token_id, model))[0])


def tensors():
    """Bytes of all tensors of this process."""
    gc.collect()
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects()
             if issubclass(type(t), torch.Tensor) and not hasattr(t, "to_local")}
    return sum(found.values())


def traces(model):
    """What a module has that is not its own: hooks, class, attributes."""
    return [(type(m).__name__, sorted(k for k in vars(m) if "_hfflow" not in k), sum(len(v) for k, v in vars(m).items() if "_hooks" in k and isinstance(v, dict)))
            for m in model.modules()], [(n, type(p).__name__, p.device.type, tuple(p.shape)) for n, p in model.named_parameters()]


def measure(folder, out):
    """Bytes before sharding and between its steps, and whether the model is as it was."""
    model, tok = add_lora(load_base(folder/"wide"), QloraConfig(rank=1)), load_tokenizer(folder/"chat")
    turn, seen, before, held = loop.Loop.turn, [], traces(model), held_bytes(model)
    def watched(self, memory):
        turn(self, memory)
        seen.append((tensors(), held_bytes(model)))
    whole = tensors()
    loop.Loop.turn = watched
    try: fit(model, tok, ROWS, TrainConfig(batch=4, max_steps=2, threads=1, shard=True), out, progress=False)
    finally: loop.Loop.turn = turn
    learned = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return dict(whole=whole, held=held, steps=seen, learned=learned, same=before == traces(model))


def work(folder):
    """What each of the two processes does."""
    from accelerate import PartialState
    folder, done = Path(folder), {}
    training.plot_loss = lambda run: type("NoFigure", (), {"savefig": lambda self, *a, **kw: None})()
    for name, (kind, kw) in {**BOTH, **SPLIT}.items():
        for way in ("whole", "split") if name in BOTH else ("split",):
            model, run, after = start(folder, folder/way/name, kind, shard=way == "split", **kw)
            done[f"{way} {name}"] = dict(losses=run.losses, held=run.eval_losses, after=after)
            gc.freeze()         # what is imported need not be looked through each time
    model, run, after = start(folder, folder/"one-then-split", epochs=2, shard=True)
    done["resumed"] = dict(losses=run.losses, held=run.eval_losses, step=run.resumed_from)
    advance = loop.Loop.advance
    def cut(self):
        if self.step == 4: raise InterruptedError
        return advance(self)
    done["measured"] = measure(folder, folder/"measured")
    loop.Loop.advance = cut
    try: start(folder, folder/"split-then-one", epochs=2, shard=True, save_every=1)
    except InterruptedError: pass
    (folder/f"done-{PartialState().process_index}.json").write_text(json.dumps(done))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("shard")
    tinychat.save(out/"chat")
    tinychat.save(out/"wide", layers=4, hidden=320)
    for kind in [kind for kind, _ in SPLIT.values() if kind != "chat"] + ["llama_tied"]: zoo.model(kind, **NO_DROPOUT).save_pretrained(out/kind)
    return out


@pytest.fixture(scope="module")
def two(folder):
    """The results of both processes."""
    advance = loop.Loop.advance
    def cut(self):
        if self.step == 3: raise InterruptedError
        return advance(self)
    loop.Loop.advance = cut
    try: start(folder, folder/"one-then-split", epochs=2, save_every=1)
    except InterruptedError: pass
    finally: loop.Loop.advance = advance
    here = Path(__file__).parent
    ran = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python", sys.executable, "-c",
                          f"import test_shard; test_shard.work({str(folder)!r})"], capture_output=True, text=True, timeout=300,
                         env={**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"})
    assert ran.returncode == 0, ran.stderr[-4000:]
    return [json.loads((folder/f"done-{i}.json").read_text()) for i in range(2)]


@pytest.mark.parametrize("name", BOTH)
def test_a_split_base_learns_what_a_whole_one_learns(two, name):
    """Losses, held-out losses, and the model that was put together again, on both processes."""
    for mine in two:
        whole, split = mine[f"whole {name}"], mine[f"split {name}"]
        assert split["losses"] == pytest.approx(whole["losses"], rel=1e-5) and split["after"] == pytest.approx(whole["after"], rel=1e-4)
        assert [s for s, _ in split["held"]] == [s for s, _ in whole["held"]] != []
        assert [x for _, x in split["held"]] == pytest.approx([x for _, x in whole["held"]], rel=1e-5)
    assert two[0][f"split {name}"] == two[1][f"split {name}"]


@pytest.mark.parametrize("name", ["nf4", *SPLIT])
def test_two_processes_with_a_split_base_are_one(two, folder, tmp_path, name):
    kind, kw = {**BOTH, **SPLIT}[name]
    model, run, after = start(folder, tmp_path, kind, **kw)
    for mine in two:
        split = mine[f"split {name}"]
        assert split["losses"] == pytest.approx(run.losses, rel=1e-3) and split["after"] == pytest.approx(after, rel=1e-3)
        assert split["held"][-1][1] == pytest.approx(run.eval_losses[-1][1], rel=1e-3) and len(set(split["losses"])) > 1


def test_each_process_holds_half_of_the_base_between_steps(two):
    for mine in two:
        m = mine["measured"]
        frozen = m["held"] - m["learned"]
        for everything, weights in m["steps"]:
            assert weights - m["learned"] < .52 * frozen
            assert everything < m["whole"] - .45 * frozen + 4 * m["learned"]      # the optimizer came in the meantime
        assert len(m["steps"]) == 2 and frozen > 20 * m["learned"]


def test_the_model_is_afterwards_as_it_was(two): assert all(mine["measured"]["same"] for mine in two)


def test_checkpoints_know_nothing_of_it(two, folder, tmp_path):
    """One process, then two with a split base, then one: each goes on from what the one before left."""
    whole = start(folder, tmp_path, epochs=2)[1]
    assert two[0]["resumed"]["step"] == 3 and two[0]["resumed"]["losses"] == pytest.approx(whole.losses, rel=1e-3)
    again = start(folder, folder/"split-then-one", epochs=2)[1]
    assert again.resumed_from == 4 and again.losses == pytest.approx(whole.losses, rel=1e-3)
    assert again.eval_losses[-1][1] == pytest.approx(whole.eval_losses[-1][1], rel=1e-3)


def test_refusals(folder, tmp_path):
    base = folder/"chat"
    with pytest.raises(UserError, match="there is one process.*torchrun --nproc_per_node 2"): start(folder, tmp_path/"x", shard=True)
    assert not (tmp_path/"x").exists()
    with pytest.raises(UserError, match="one process"), sharded(add_lora(load_base(base))): pass
    with pytest.raises(UserError, match="cache_weights is True.*leave one"): TrainConfig(shard=True, cache_weights=True)
    with pytest.raises(UserError, match="offload and shard are both True"): TrainConfig(shard=True, offload=True)
    with pytest.raises(UserError, match="every weight of the model learns"): refuse_shard(add_lora(load_base(base, 32), QloraConfig(bits=32, full=True)), 2)
    with pytest.raises(UserError, match="8-bit layers"): refuse_shard(add_lora(load_base(base, 8)), 2)
    odd = add_lora(load_base(base))
    for m in odd.modules():
        if hasattr(m, "_no_split_modules"): m._no_split_modules = set()
    with pytest.raises(UserError, match="LlamaForCausalLM names no layers"): refuse_shard(odd, 2)


def test_units_are_layers_and_a_table_of_ones_own(folder):
    names = lambda kind: [type(u).__name__ for u in shard_units(add_lora(load_base(folder/kind), QloraConfig(rank=2)))]
    assert names("chat") == ["Embedding"] + ["LlamaDecoderLayer"] * 2 and names("llama_tied") == ["LlamaDecoderLayer"] * 2
    assert names("t5") == ["T5Block"] * 4


def test_the_arithmetic_of_a_gpu_can_be_chosen_on_a_cpu(folder):
    """A base that waits on the CPU for its GPUs must not be in the format that suits the CPU."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        model = load_base(folder/"chat", device="cpu", dtype=dtype)
        assert model.dtype == dtype and {m.compute_dtype for m in model.modules() if hasattr(m, "compute_dtype")} == {dtype}
