"""The plan scales as it should, says what fits, and answers bad input in one sentence."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import zoo
from hfflow import plan as pl
from hfflow.engine import devices
from hfflow.hub import UserError
from hfflow.qlora import QloraConfig, add_lora
from hfflow.train import TrainConfig


def llama(**kw):
    from transformers import LlamaConfig

    return LlamaConfig(**{**dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                 max_position_embeddings=512, name_or_path="small"), **kw})


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
    # fp16 on a T4: two bytes per weight, against half a byte and its scales
    assert pl.plan(llama(), gpu="T4", qlora=QloraConfig(bits=16)).memory["unquantised weights"] > 1.5 * (a.memory["4-bit weights"] + a.memory["unquantised weights"])


def test_lengths_come_from_the_data():
    rows = [{"input_ids": [5] * n, "labels": [-100] * (n - 10) + [5] * 10} for n in (20, 40, 60)] * 10
    p = pl.plan(llama(), rows, train=TrainConfig(batch=4, max_len=512, epochs=2))
    assert (p.setting["longest"], p.setting["mean_len"], p.steps) == (60, 40, 16)
    assert p.seconds > 0 and p.cost == 0 and p.fits() and p.fits().margin > 0
    read = json.loads(json.dumps(p.as_dict()))
    assert read["fits"] is True and read["total_bytes"] == p.total_bytes and "case" not in read
    assert p.peak_bytes == sum(v for k, v in p.memory.items() if k != "libraries") and p.process_bytes == p.memory["libraries"]
    assert "peak of a step" in str(p) and "| peak of a step |" in p._repr_markdown_()


def test_memory_is_that_of_the_largest_batch_and_time_that_of_all():
    rows = [{"input_ids": [5] * n, "labels": [5] * n} for n in [16] * 60 + [400] * 4]
    train = TrainConfig(batch=4, max_len=512)
    some, long = pl.plan(llama(), rows, train=train, gpu="T4"), pl.plan(llama(), rows=64, mean_len=16, max_len=400, batch=4, gpu="T4")
    assert some.setting["longest"] == 400 and some.memory["activations"] < .8 * long.memory["activations"]
    assert some.step_seconds < .3 * pl.plan(llama(), rows=64, mean_len=400, max_len=400, batch=4, gpu="T4").step_seconds


def test_a_repo_without_a_configuration_is_no_model():
    from hfflow.hub import connect
    connect().api.create_repo("you/nothing-yet", exist_ok=True)
    with pytest.raises(UserError, match="has no config.json that names its architecture"): pl.plan("you/nothing-yet")


def test_a_configuration_made_by_hand_need_not_say_what_a_decoder_begins_with():
    from transformers import T5Config
    config = T5Config(d_model=64, d_ff=128, d_kv=16, num_heads=4, num_layers=2, vocab_size=320, architectures=["T5ForConditionalGeneration"])
    assert pl.plan(config, gpu="T4", batch=2, max_len=32).fits()


@pytest.mark.parametrize("kind", ["bert", "t5", "whisper", "bloom"])
def test_other_tasks_and_models_that_need_a_rectangle(kind):
    p = pl.plan(zoo.config(kind), gpu="L4", rows=100, batch=4, max_len=32, task="classify" if kind == "bert" else None)
    assert p.fits() and p.seconds > 0 and p.memory["activations"] > 0


def test_what_does_not_fit_gets_a_setting_that_does():
    from transformers import Qwen3Config

    big = Qwen3Config(vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
                      num_key_value_heads=8, head_dim=128, tie_word_embeddings=False, name_or_path="8B")
    p = pl.plan(big, gpu="t4", rows=100)
    assert not p.fits() and p.fits().margin < 0 and p.advice.startswith("This fits: batch=") and "NO" in str(p)
    assert p.nearest["batch"] * p.nearest["accumulation"] == 16
    near = pl.plan(big, gpu="T4", rows=100, train=TrainConfig(**p.nearest))
    assert near.fits() and any("30 minutes" in n for n in p.notes) and p.cost > 0
    assert pl.plan(big, gpu="T4", rows=100, preset="auto").setting == near.setting
    assert p.fits("h200") and not p.fits("cpu 8") and p.fits("apple 128").device == "Apple 128 GB"
    offers = {r["flavor"]: r for r in p.offers()}
    assert not offers["t4-small"]["fits"] and offers["h200"]["fits"] and offers["h200"]["dollars"] > 0


def test_how_many_rows_how_long_and_how_large():
    p = pl.plan(llama(), gpu="cpu 1", rows=10, batch=4, max_len=64)
    n, length = p.largest_batch(most=10**5), p.longest_context()
    case = p.case
    assert case.room(replace(case.train, batch=n)) >= 0 > case.room(replace(case.train, batch=n + n // 8 + 1))
    assert length == 512 and p.largest_batch("cpu 2", most=10**5) > 1.5 * n and pl.plan(llama(), gpu="cpu 0", rows=9).largest_batch() == 0
    small, large, huge = llama(), llama(hidden_size=128), llama(hidden_size=8192, intermediate_size=28672, num_hidden_layers=40)
    assert pl.largest_model([large, huge, small], "cpu 1", batch=1, max_len=64).params["total"] == pl.plan(large, gpu="T4").params["total"]


def test_the_ways_of_fine_tuning_side_by_side():
    table = pl.compare(llama(), gpu="T4", train=TrainConfig(batch=4, max_len=64))
    assert len(table) == 10 and {"way", "checkpointing", "weights", "activations", "fits"} <= table[0].keys()


def test_prices_are_asked_where_the_hub_tells_them(monkeypatch):
    from types import SimpleNamespace
    import huggingface_hub
    told = [SimpleNamespace(name="t4-small", unit_cost_usd=.01, unit_label="minute"), SimpleNamespace(name="odd", unit_cost_usd=None, unit_label="minute")]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_jobs_hardware", lambda self, **kw: told, raising=False)
    p = pl.plan(llama(), gpu="T4", rows=10)
    assert any("$0.60 per hour (today)" in n for n in p.notes)
    def refuse(self, **kw): raise OSError("no network")
    monkeypatch.setattr(huggingface_hub.HfApi, "list_jobs_hardware", refuse, raising=False)
    assert any("$0.40 per hour (2026-08)" in n for n in pl.plan(llama(), gpu="T4", rows=10).notes)


def test_nothing_but_config_and_headers_is_fetched(tmp_path):
    from hfflow import hub
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE
    from transformers import AutoModelForCausalLM
    torch = __import__("torch")
    AutoModelForCausalLM.from_config(llama()).to(torch.bfloat16).save_pretrained(tmp_path)
    repo = HfApi().create_repo(f"{HfApi().whoami()['name']}/plan-me", exist_ok=True).repo_id
    HfApi().upload_folder(repo_id=repo, folder_path=tmp_path)
    p = pl.plan(repo, gpu="T4", rows=10)
    size = sum(t.numel() * 2 for t in AutoModelForCausalLM.from_config(llama()).parameters())
    assert p.download_bytes == size
    kept = [f.name for f in (Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}").rglob("*") if f.is_symlink() or f.is_file()]
    assert "config.json" in kept and not any(n.endswith(".safetensors") for n in kept)


def test_the_probe_measures_real_steps():
    rows = [{"input_ids": [5] * 40, "labels": [5] * 40}] * 8
    assert 1e7 < pl.probe(llama(), rows, train=TrainConfig(batch=4, threads=1), seconds=1) < 1e14


@pytest.mark.parametrize("name", ["T4", "t4", "t4-small", "NVIDIA L4", "rtx 4090", "h200", "A100-40"])
def test_gpus_are_found_however_they_are_spelled(name):
    assert devices.gpu_named(name).gib > 10


@pytest.mark.parametrize("args, message", [
    (dict(base="config", gpu="H20"), "take H200"),
    (dict(base="config", train=dict(max_len=4096)), "reads 512 tokens at most"),
    (dict(base="config", rows=0), "rows is 0"),
    (dict(base="config", train=dict(batch=10**6, max_len=512)), "between 1 and 4096"),
    (dict(base="long", train=dict(batch=4096, max_len=8192)), "more than any device"),
    (dict(base="./nowhere"), "does not exist"),
    (dict(base="config", data=[]), "no rows to train on"),
    (dict(base="config", preset="fast"), "only auto, cpu"),
])
def test_bad_input_is_one_sentence(args, message):
    base = {"config": llama(), "long": llama(max_position_embeddings=8192)}.get(args["base"], args["base"])
    with pytest.raises(UserError, match=message) as e:
        pl.plan(base, args.get("data"), train=TrainConfig(**args.get("train", {})), gpu=args.get("gpu"), rows=args.get("rows"), preset=args.get("preset"))
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


def test_a_base_that_is_split_is_counted_whole_and_that_is_said():
    whole, split = (pl.plan(llama(), gpu="T4", train=TrainConfig(shard=shard)) for shard in (False, True))
    assert whole.total_bytes == split.total_bytes and any("shard splits" in n for n in split.notes) and not any("shard" in n for n in whole.notes)


def test_the_plan_says_what_it_does_not_count_of_compiling():
    plain, quick = (pl.plan(llama(), gpu="T4", train=TrainConfig(compile=on)) for on in (False, True))
    assert plain.total_bytes == quick.total_bytes and any("compile keeps less" in n for n in quick.notes) and not any("compil" in n for n in plain.notes)
