"""The plan counts what a real step holds, scales as it should, and answers bad input in one sentence."""
import json

import pytest
from hfflow import plan as pl
from hfflow.fused import fast_lora
from hfflow.hub import UserError
from hfflow.qlora import QloraConfig, add_lora
from hfflow.train import TrainConfig


def llama(**kw):
    from transformers import LlamaConfig

    return LlamaConfig(**{**dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                 max_position_embeddings=512, name_or_path="small"), **kw})


def others():
    from transformers import GPT2Config, Gemma3TextConfig, MistralConfig, Qwen3Config

    few = dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    return [llama(), Qwen3Config(**few), MistralConfig(**few), Gemma3TextConfig(**few), GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=4)]


@pytest.mark.parametrize("config", others(), ids=lambda c: c.model_type)
def test_fake_step_holds_what_a_real_step_holds(config):
    import torch
    from hfflow.loss import CHUNK, _loss_function
    from transformers import AutoModelForCausalLM

    fake = pl.fake_step(config, 4, 48, 96)
    model = add_lora(AutoModelForCausalLM.from_config(config), QloraConfig()).train()
    inner = model.get_base_model()
    body, head = getattr(inner, inner.base_model_prefix), inner.get_output_embeddings()
    ids, y, at = torch.randint(0, 512, (4, 48)), torch.zeros(96, dtype=torch.long), torch.arange(96)
    with fast_lora(model, cache=False), pl._alive_class()([*model.parameters(), *model.buffers(), ids, y, at]) as alive:
        h = body(input_ids=ids, use_cache=False).last_hidden_state
        kept = alive.now
        h = h.flatten(0, 1)[at]
        loss = _loss_function().apply(h, head.weight, y, CHUNK // (4 * 512))
        del h
        loss.backward()
        peak = alive.peak
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in model.parameters() if p.grad is not None)
    assert fake["gradients"] == gradients
    assert abs(fake["activations"] / kept - 1) < 0.03 and abs(fake["peak"] / peak - 1) < 0.03


def test_layers_are_extrapolated_exactly():
    cfg = llama(num_hidden_layers=7)
    whole, some = pl.fake_step(cfg, 2, 32, 32), pl._step(cfg, 2, 32, 32, QloraConfig(), __import__("torch").float32)
    assert all(abs(whole[k] - some[k]) <= 0.01 * whole[k] for k in whole), (whole, some)


def test_weights_are_counted_to_the_byte(tmp_path):
    """Against a model that bitsandbytes has quantised."""
    from hfflow.qlora import load_base
    from transformers import AutoModelForCausalLM

    cfg = llama()
    AutoModelForCausalLM.from_config(cfg).save_pretrained(tmp_path)
    model = add_lora(load_base(tmp_path), QloraConfig(rank=4))
    got = pl.plan(tmp_path, qlora=QloraConfig(rank=4), train=TrainConfig(max_len=32))
    four = other = 0
    for m in model.modules():
        if type(m).__module__.startswith("bitsandbytes") and hasattr(m.weight, "quant_state"):
            s = m.weight.quant_state
            four += sum(t.numel() * t.element_size() for t in (m.weight, s.absmax, s.code, s.offset, s.state2.absmax, s.state2.code))
    lora = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    other = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if "lora_" not in n and p.dtype.is_floating_point)
    assert got.memory["4-bit weights"] == four and got.memory["LoRA"] == lora
    assert abs(got.memory["other weights"] - other) < 1024       # buffers


def test_memory_grows_with_what_makes_it_grow():
    p = lambda **kw: pl.plan(llama(), gpu="T4", rows=100, train=TrainConfig(**{**dict(batch=8, max_len=64), **kw}))
    a = p()
    assert p(batch=16).memory["activations"] > 1.9 * a.memory["activations"]
    assert p(max_len=128).memory["activations"] > 1.9 * a.memory["activations"]
    assert p(checkpointing=True).memory["activations"] < 0.6 * a.memory["activations"]
    assert p(accumulation=2).steps == 21 and a.steps == 39 and p(max_steps=7).steps == 7
    short = a.within(3 * a.step_seconds / 60 + 1e-9)
    assert (short.steps, short.tokens) == (3, 3 * a.setting["tokens_per_step"]) and abs(short.seconds - 3 * a.step_seconds) < 1e-9
    assert 0 < short.cost < a.cost and a.within(1e6).steps == a.steps
    assert pl.plan(llama(), gpu="T4", qlora=QloraConfig(bits=16)).memory["16-bit weights"] > 2.5 * a.memory["4-bit weights"]


def test_lengths_come_from_the_data():
    rows = [{"input_ids": [5] * n, "labels": [-100] * (n - 10) + [5] * 10} for n in (20, 40, 60)] * 10
    p = pl.plan(llama(), rows, train=TrainConfig(batch=4, max_len=512, epochs=2))
    assert (p.setting["longest"], p.setting["mean_len"], p.steps) == (60, 40, 16)
    assert p.seconds > 0 and p.cost == 0 and p.fits
    assert json.loads(json.dumps(p.as_dict()))["peak_bytes"] == sum(p.memory.values())
    assert "peak of a step" in str(p) and "| peak of a step |" in p._repr_markdown_()


def test_what_does_not_fit_gets_a_setting_that_does():
    from transformers import Qwen3Config

    big = Qwen3Config(vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
                      num_key_value_heads=8, head_dim=128, tie_word_embeddings=False, name_or_path="8B")
    p = pl.plan(big, gpu="t4", rows=100)
    assert not p.fits and p.advice.startswith("This fits: batch=")
    b, a = (int(w.split("=")[1].strip(",")) for w in p.advice.split() if w.startswith(("batch=", "accumulation=")))
    assert b * a == 16 and pl.plan(big, gpu="T4", rows=100, train=TrainConfig(batch=b, accumulation=a)).fits
    assert any("30 minutes" in n for n in p.notes) and p.cost > 0


@pytest.mark.parametrize("name", ["T4", "t4", "t4-small", "NVIDIA L4", "rtx 4090", "h200", "A100-40"])
def test_gpus_are_found_however_they_are_spelled(name):
    assert pl._gpu(name).gib > 10


@pytest.mark.parametrize("args, message", [
    (dict(base="config", gpu="H20"), "take H200"),
    (dict(base="config", train=dict(max_len=4096)), "reads 512 tokens at most"),
    (dict(base="config", rows=0), "rows is 0"),
    (dict(base="config", train=dict(batch=10**6, max_len=512)), "more than any device"),
    (dict(base="./nowhere"), "does not exist"),
    (dict(base="config", data=[]), "no rows to train on"),
])
def test_bad_input_is_one_sentence(args, message):
    base = llama() if args["base"] == "config" else args["base"]
    with pytest.raises(UserError, match=message) as e:
        pl.plan(base, args.get("data"), train=TrainConfig(**args.get("train", {})), gpu=args.get("gpu"), rows=args.get("rows"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text, message", [("{", "cannot be read"), ('{"model_type": "nothing"}', "does not know"), ('{"model_type": "vit"}', "cannot load for the task 'causal'"),
                                           ('{"model_type": "llama", "hidden_size": -4}', "cannot be")])
def test_broken_configs(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        pl.plan(tmp_path, rows=10)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        pl.plan(tmp_path)
