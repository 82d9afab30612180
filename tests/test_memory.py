"""A step on fake tensors holds what a real one does: against PyTorch's own allocator, over architectures and settings."""
import os

import pytest
import torch
import zoo

from hfflow.engine import fakes, memory
from hfflow.hub import UserError
from hfflow.qlora import QloraConfig, add_lora, load_base
from hfflow.engine.loop import Loop
from hfflow.train import TrainConfig

ROWS = [{"input_ids": [5 + i % 300] * n, "labels": [-100] * (n // 2) + [5] * (n - n // 2)} for i, n in enumerate((40, 60, 33, 60, 48, 52, 60, 21))]
LABELS = [{"input_ids": r["input_ids"], "label": i % 3} for i, r in enumerate(ROWS)]
PAIRS = [{"input_ids": r["input_ids"], "labels": r["input_ids"][:20]} for r in ROWS]


def rows(kind): return LABELS if kind in zoo.CLASSIFY else PAIRS if kind in zoo.SEQ2SEQ else ROWS


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "Folders of small models, made once each: wide enough for a step to be larger than what single operations need beside it."
    folders = {}
    def save(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            zoo.model(kind, std=.02).save_pretrained(folders[kind])
        return folders[kind]
    return save


def apart(work):
    "Run in a process of its own: the profiler's record of allocations is whole only the first time."
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        out = "nothing"
        try: out = repr(work())
        except BaseException as e: out = repr(f"{type(e).__name__}: {e}")       # noqa: BLE001
        finally:
            os.write(theirs, out.encode())
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as f: out = f.read()
    os.waitpid(pid, 0)
    return eval(out)    # noqa: S307


def real(folder, qlora, train, data):
    model = add_lora(load_base(folder, qlora.bits), qlora)
    loop = Loop(model, memory.NoTokenizer(), data, train, folder)
    def two_steps():
        with loop.ready(): loop.advance(), loop.advance()
    weights = memory.held(model)
    return weights, weights + memory.peak_allocated(two_steps)[1]


CASES = [("llama", {}, {}), ("llama", {}, dict(checkpointing=True)), ("llama_tied", dict(rank=64), dict(label_smoothing=.1, neftune_alpha=5.)),
         ("llama", dict(bits=8), {}), ("llama", dict(bits=16, full=True), {}), ("llama", dict(dora=True), {}), ("llama", dict(dropout=.1), dict(cache_weights=True)),
         ("qwen3", {}, {}), ("gemma3", {}, {}), ("mistral", {}, dict(checkpointing=True)), ("phi", {}, {}), ("gpt2", {}, {}), ("opt", {}, {}), ("bloom", {}, {}),
         ("qwen3_moe", {}, {}), ("mixtral", {}, {}), ("bert", {}, {}), ("roberta", dict(bits=32, full=True), {}), ("distilbert", {}, {}), ("gpt2_labels", {}, {}), ("t5", dict(bits=32, rank=4), {}), ("bart", {}, {})]


@pytest.mark.parametrize("kind, qlora, train", CASES, ids=lambda x: x if isinstance(x, str) else "-".join(f"{k}={v}" for k, v in x.items()) or "plain")
def test_what_a_fake_step_holds_a_real_one_holds(saved, kind, qlora, train):
    """To two percent and 64 KiB: what single operations need for themselves shows in steps as small as these."""
    folder, qlora = saved(kind), QloraConfig(**qlora)
    cfg = TrainConfig(**{**dict(batch=8, max_steps=2, cache_weights=False, threads=1), **train})
    step = memory.fake_step(load_base(folder, 32).config, rows(kind), qlora, cfg)
    weights, peak = apart(lambda: real(folder, qlora, cfg, rows(kind)))
    assert abs(sum(v for k, v in step.before.items() if "weights" in k and "de-" not in k) - weights) <= .001 * weights
    assert abs(step.peak - peak) <= .02 * peak + 2**16, (step.peak / peak, step.parts)
    assert step.flops > 0 and step.phase in ("forward", "loss", "backward", "update")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_are_extrapolated_exactly(checkpointing):
    """Of layers that are all alike, of two kinds in turn, and where the first ones are of another kind."""
    def deeper(kind, **changes):
        config = zoo.config(kind)
        for k, v in changes.items(): setattr(config, k, v)
        return config
    for cfg in (deeper("llama", num_hidden_layers=6), deeper("gemma3", num_hidden_layers=6, layer_types=["sliding_attention", "full_attention"] * 3),
                deeper("deepseek_v3", num_hidden_layers=7, first_k_dense_replace=2)):
        train = TrainConfig(batch=8, cache_weights=False, checkpointing=checkpointing)
        whole, some = memory.fake_step(cfg, ROWS, train=train), memory.step_memory(cfg, ROWS, train=train)
        assert not some.trace and some.peak == pytest.approx(whole.peak, rel=.005) and some.flops == pytest.approx(whole.flops, rel=.005)
        assert some.parameters == whole.parameters and some.before == pytest.approx(whole.before, rel=.001)


@pytest.mark.parametrize("layers, first, period", [("aaaaaaaa", 0, 1), ("abababab", 0, 2), ("bbbaaaaaaa", 3, 1), ("aaabaaabaa", 0, 4), ("bcaabaabaab", 2, 3), ("aaaaaaab", 7, 1)])
def test_where_layers_begin_to_repeat(layers, first, period):
    assert memory._pattern(list(layers)) == (first, period)


def test_a_base_that_few_bits_cannot_hold_is_refused_as_it_is_when_loaded():
    with pytest.raises(UserError, match="FalconForCausalLM.*bits=16"): memory.step_memory(zoo.config("falcon"), ROWS)


def test_whether_weights_are_kept_is_decided_for_the_whole_model():
    """Of a deep model two layers would be small enough to keep them, the whole is not."""
    from transformers import LlamaConfig
    deep = LlamaConfig(vocab_size=512, hidden_size=1024, intermediate_size=2816, num_hidden_layers=40, num_attention_heads=8)
    assert "de-quantised weights" not in memory.step_memory(deep, ROWS[:1]).before


def test_accumulation_holds_gradients_while_it_goes_on(saved):
    config, full = load_base(saved("llama"), 32).config, QloraConfig(bits=32, full=True)
    one, four = (memory.fake_step(config, ROWS[:2] * n, full, TrainConfig(batch=2, accumulation=n)) for n in (1, 2))
    assert four.peak > one.peak and four.flops == pytest.approx(2 * one.flops, rel=.01)


def test_states_of_8_bits_are_those_of_bitsandbytes(saved):
    from bitsandbytes.optim import AdamW8bit
    qlora, train = QloraConfig(rank=64), TrainConfig(batch=8, optimizer="adamw8bit")
    model = add_lora(load_base(saved("llama"), 4), qlora)
    params = [p for p in model.parameters() if p.requires_grad]
    opt = AdamW8bit(params)
    for p in params: p.grad = torch.zeros_like(p)
    opt.step()
    own = {t.data_ptr(): t.nbytes for s in opt.state.values() for k, t in s.items() if isinstance(t, torch.Tensor)}
    tables = {t.data_ptr(): t.nbytes for t in opt.name2qmap.values()}
    step = memory.fake_step(model.config, ROWS, qlora, train)
    assert step.before["optimizer states"] == sum(n for at, n in own.items() if at not in tables)
    plain = memory.fake_step(model.config, ROWS, qlora, TrainConfig(batch=8))
    assert step.before["optimizer states"] < .4 * plain.before["optimizer states"]


def test_what_is_offloaded_is_not_held(saved):
    config = zoo.model("llama").config
    stays, goes = (memory.fake_step(config, ROWS * 32, train=TrainConfig(batch=256, offload=offload)) for offload in (False, True))
    assert goes.flops == stays.flops
    assert goes.parts["activations"] < .4 * stays.parts["activations"]
    assert goes.peak < stays.peak


def test_one_kernel_for_all_documents_keeps_less(saved):
    config = load_base(saved("llama"), 32).config
    a, b = (memory.fake_step(config, ROWS, dtype=torch.bfloat16, one_kernel=k, train=TrainConfig(cache_weights=False)) for k in (False, True))
    assert b.parts["activations"] < a.parts["activations"] and b.phase == a.phase


def test_the_way_to_the_peak_is_told(saved):
    step = memory.fake_step(load_base(saved("llama"), 32).config, ROWS, train=TrainConfig(cache_weights=False, checkpointing=True))
    assert [p for i, (p, *_) in enumerate(step.trace) if not i or p != step.trace[i-1][0]] == ["forward", "loss", "backward", "update"]
    assert max(sum(now.values()) for *_, now in step.trace) == step.peak and step.module.startswith("model.layers.")
    assert memory.plot_step({"a step": step}).axes and "together" in step._repr_markdown_()


def test_a_step_changes_nothing_around_it(saved):
    from hfflow.engine import attention
    from peft.tuners.lora import dora
    model = load_base(saved("llama"), 32)
    before = attention.varlen, attention.one_kernel, torch.get_rng_state(), torch.rand, dora.dequantize_module_weight, attention.kernels_of(model)
    memory.fake_step(model.config, ROWS, QloraConfig(dora=True), one_kernel=True)
    assert (attention.varlen, attention.one_kernel, torch.rand, dora.dequantize_module_weight, attention.kernels_of(model)) == (*before[:2], *before[3:])
    assert torch.equal(torch.get_rng_state(), before[2]) and model.config._attn_implementation == "sdpa"


def test_a_model_that_cannot_be_built_is_a_sentence():
    config = zoo.config("llama")
    config.hidden_size = -4
    with pytest.raises(UserError, match="cannot be built") as e: fakes.meta_model(config)
    assert "\n" not in str(e.value)


def test_depths_with_peaks_of_another_kind_are_not_extrapolated():
    """Two layers of a model with a large head have their peak before there are gradients, three layers with them."""
    from transformers import Qwen3Config
    shape = Qwen3Config(vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=9, num_attention_heads=32,
                        num_key_value_heads=8, head_dim=128, tie_word_embeddings=False)
    rows = [{"input_ids": [1] * 512, "labels": [-100] * 256 + [1] * 256}] * 16
    step = (shape, rows, QloraConfig(bits=32, full=True), TrainConfig(batch=16, checkpointing=True), torch.float32)
    assert memory.step_memory(*step).peak == pytest.approx(memory.fake_step(*step).peak, rel=.005)
