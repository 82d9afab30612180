"""Training in bf16, as GPUs and newer CPUs do it, follows training in fp32; a CPU compiles few shapes. (The other tests compare in fp32.)"""
import random

import numpy as np
import pytest
import torch
import zoo

from hfflow.engine import attention, loss
from hfflow.engine.memory import NoTokenizer
from hfflow.qlora import QloraConfig, add_lora, load_base, merge
from hfflow.engine.loop import Loop
from hfflow.train import TrainConfig

KINDS = ["llama", "qwen3", "gemma3", "mistral", "phi", "gpt2", "opt", "bloom", "mixtral", "qwen3_moe", "bert", "distilbert", "t5", "bart", "whisper"]


def rows(kind):
    rng = random.Random(0)
    texts = [[5 + rng.randrange(40)] * 4 + list(range(5, 5 + n)) for n in (40, 60, 33, 50, 48, 52, 60, 21)]
    if kind == "whisper":
        config = zoo.config(kind)
        sound = lambda i: np.random.default_rng(i).normal(size=(config.num_mel_bins, 2 * config.max_source_positions)).astype("float32")
        return [{"input_features": sound(i), "labels": t[:12]} for i, t in enumerate(texts)]
    if kind in zoo.CLASSIFY: return [{"input_ids": t, "label": i % 3} for i, t in enumerate(texts)]
    if kind in zoo.SEQ2SEQ: return [{"input_ids": t, "labels": t[4:24]} for t in texts]
    return [{"input_ids": t, "labels": [-100] * 4 + t[4:]} for t in texts]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = {}
    def folder(kind):
        if kind not in made: zoo.model(kind, std=.05).save_pretrained(made.setdefault(kind, tmp_path_factory.mktemp(kind)))
        return made[kind]
    return folder


def learn(model, kind, steps=6, **more):
    "Losses of a few steps of the training loop."
    loop = Loop(model, NoTokenizer(), rows(kind), TrainConfig(batch=8, max_steps=steps, lr=1e-2, warmup=0., cache_weights=True, threads=1, **more), "")
    with loop.ready(): return [loop.advance()[0] for _ in range(steps)]


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_follows_fp32(saved, kind):
    def made(dtype): return add_lora(load_base(saved(kind), 4, dtype=dtype), QloraConfig(rank=8))
    model = made(torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)          # the adapter learns in full precision
    half, full = learn(model, kind), learn(made(torch.float32), kind)
    assert half == pytest.approx(full, rel=.03) and half[-1] < .995 * half[0], (half, full)
    assert len({f"{x:.6f}" for x in half}) == 6                                                   # the loss itself is not rounded to 8 bits


@pytest.mark.parametrize("kind, more", [("llama", {}), ("gemma3", dict(checkpointing=True)), ("gpt2", dict(label_smoothing=.1)), ("qwen3_moe", {}), ("mamba", {}), ("bert", {}), ("bart", {})])
def test_what_fills_a_shape_changes_nothing(saved, kind, more, monkeypatch):
    made = lambda: add_lora(load_base(saved(kind), 4, dtype=torch.bfloat16), QloraConfig(rank=8))
    sizes, plain = set(), attention.rounded_up
    def seen(n, *args):
        sizes.add(plain(n, *args))
        return plain(n, *args)
    monkeypatch.setattr(attention, "rounded_up", seen)
    filled = learn(made(), kind, 3, **more)
    assert sizes and all(n % 32 == 0 for n in sizes)
    monkeypatch.setattr(attention, "rounded_up", lambda n, *_: n)
    assert filled == pytest.approx(learn(made(), kind, 3, **more), rel=.01)


def test_the_gradient_of_a_filled_batch_is_that_of_the_batch(saved, monkeypatch):
    """In fp32, where the two differ by the order of sums alone."""
    model = add_lora(load_base(saved("llama"), 4, dtype=torch.float32), QloraConfig(rank=8), seed=0)
    for n, p in model.named_parameters():
        if "lora_B" in n: torch.nn.init.normal_(p, std=.02)
    def gradient():
        model.zero_grad()
        total, n = loss.batch_loss(model, loss.make_batch(model, rows("llama"), 0))
        total.backward()
        return n, total.item(), {k: p.grad.clone() for k, p in model.named_parameters() if p.requires_grad}
    a = gradient()
    monkeypatch.setattr(attention, "rounded_up", lambda n, *_: -(-n // 64) * 64 + 64)
    b = gradient()
    assert a[0] == b[0] and a[1] == pytest.approx(b[1], rel=1e-5)
    assert all((a[2][k] - b[2][k]).norm() <= 1e-4 * a[2][k].norm() for k in a[2])


def test_few_shapes_between_two_powers_of_two():
    bf16 = torch.bfloat16
    sizes = [attention.rounded_up(n, "cpu", bf16) for n in range(1, 9000)]
    assert all(n <= m < n * 1.07 + 32 for n, m in enumerate(sizes, 1)) and sizes == sorted(sizes)
    assert len(set(sizes)) < 100 and len({m for m in sizes if 4096 < m <= 8192}) == 16
    assert attention.rounded_up(500, "cpu", bf16, 505) == 505 and attention.rounded_up(510, "cpu", bf16, 505) == 510
    assert attention.rounded_up(77, "cpu", torch.float32) == attention.rounded_up(77, "cuda", bf16) == 77


@pytest.mark.parametrize("bits, dora", [(4, False), (4, True), (8, False), (16, False)])
def test_merged_in_bf16(saved, bits, dora):
    model = add_lora(load_base(saved("llama"), bits, dtype=torch.bfloat16), QloraConfig(bits=bits, rank=8, dora=dora))
    learn(model, "llama")
    ids = torch.tensor([rows("llama")[0]["input_ids"]])
    with torch.no_grad():
        want = model(ids).logits.float()
        got = merge(model)(ids).logits.float()
    assert (got - want).norm() < .1 * want.norm()
