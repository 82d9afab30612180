"""Compiled layers compute what plain ones do, keep less, and a run with them is resumed to the bit."""
import signal
from contextlib import nullcontext

import pytest
import tinychat
import torch
import zoo
from test_train import ROWS, log, start, steps, sub

from hfflow.engine import fused
from hfflow.engine.compiled import compile_units, compiled, compiler_missing
from hfflow.engine.fused import fast_lora
from hfflow.hub import UserError
from hfflow.engine.attention import packed_attention
from hfflow.engine.loss import paths_of
from hfflow.qlora import QloraConfig, add_lora, load_base, load_tokenizer
from hfflow.engine.tasks import encode_rows, task_collate, task_loss, task_of


@pytest.fixture(autouse=True, scope="module")
def compiler():
    # asked here, for the answer imports the compiler
    if lacks := compiler_missing(): pytest.skip(f"torch.compile cannot run here: {lacks}")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tinychat.save(tmp_path_factory.mktemp("base"))


def small(kind, tmp_path, bits=4):
    """A model with an adapter that has learned something, and no dropout of its own."""
    zoo.model(kind, std=.08).save_pretrained(tmp_path/kind)
    model = add_lora(load_base(tmp_path/kind, bits, dtype=torch.float32), QloraConfig(bits=bits, rank=4)).train()
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=.05)
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout): m.p = 0.
    return model


def batches(kind, model):
    """Three batches, no two of one shape."""
    for seed in range(3):
        made = zoo.batch(kind, seed)
        if task_of(model) != "causal": yield made
        else: yield task_collate([{"input_ids": r[:11 - seed - i].tolist(), "labels": r[:11 - seed - i].tolist()} for i, r in enumerate(made["input_ids"])], 1, model)


def losses(kind, model):
    """Loss and gradients of each batch, and the loss without gradients."""
    for batch in batches(kind, model):
        model.zero_grad()
        loss, _ = task_loss(model, batch)
        loss.backward()
        yield loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.eval()
    with torch.no_grad(): yield task_loss(model, batch)[0], torch.zeros(1)
    model.train()


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "bert", "whisper"])
def test_loss_and_gradients_are_the_plain_ones(kind, tmp_path):
    model = small(kind, tmp_path, 16 if kind == "gpt2" else 4)
    packed = task_of(model) == "causal" and paths_of(model).packed
    before = [set(vars(m)) for m in model.modules()]
    with fast_lora(model), packed_attention(model) if packed else nullcontext():
        plain = list(losses(kind, model))
        with compiled(model): quick = list(losses(kind, model))
        again = list(losses(kind, model))
    for (a, ga), (b, gb), (c, gc) in zip(plain, quick, again):
        assert abs(a - b) < 1e-5 * abs(a) and (ga - gb).norm() <= 1e-4 * ga.norm()
        assert a == c and torch.equal(ga, gc)           # nothing is left of it
    assert before == [set(vars(m)) for m in model.modules()]


def test_one_graph_serves_all_layers_and_all_lengths(tmp_path):
    from torch._dynamo.utils import counters
    model = small("llama", tmp_path)
    torch._dynamo.reset()           # what another test compiled would serve, too
    counters.clear()
    with fast_lora(model), packed_attention(model), compiled(model):
        batch, *others = batches("llama", model)
        task_loss(model, batch)[0].backward()
        frames = counters["frames"]["ok"]
        for other in others: task_loss(model, other)[0].backward()
    assert frames and counters["frames"]["ok"] == frames


def test_less_waits_for_the_backward_pass(base):
    model = add_lora(load_base(base), QloraConfig(rank=4)).train()
    tok = load_tokenizer(base)
    batch = task_collate(encode_rows(ROWS, tok, model)[0], tok.pad_token_id, model)
    def kept():
        own, found = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}
        def note(t):
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t): task_loss(model, batch)
        return sum(n for where, n in found.items() if where not in own)
    with fast_lora(model), packed_attention(model):
        plain = kept()
        with compiled(model): assert kept() < .85 * plain


def test_the_operator_keeps_the_rules_of_operators(tmp_path):
    layer = next(m for m in small("llama", tmp_path).modules() if fused._plain_lora(m))
    forward = fused._fast_forward(layer, cache=False)
    x = torch.randn(2, 5, layer.in_features, requires_grad=True)
    A, B, number = layer.lora_A["default"].weight, layer.lora_B["default"].weight, torch.tensor(max(fused._frozen))
    torch.library.opcheck(fused._lora_operator(), (x, A, B, number))
    grads = [torch.autograd.grad(y.square().sum(), (x, A, B)) for y in (fused._lora_operator()(x, A, B, number), forward(layer, x))]
    for mine, theirs in zip(*grads): assert (mine - theirs).norm() < 1e-5 * theirs.norm()


def test_a_killed_run_is_resumed_to_the_bit_and_only_compiled(base, tmp_path):
    kw = dict(compile=True, max_steps=8, accumulation=2, dropout=.1)
    assert sub(base, tmp_path/"whole", **kw).returncode == 0
    assert sub(base, tmp_path/"killed", kill=5, **kw).returncode == -signal.SIGKILL
    assert sub(base, tmp_path/"killed", **kw).returncode == 0
    whole = steps(tmp_path/"whole")
    assert steps(tmp_path/"killed") == whole and any(e.get("event") == "resumed" for e in log(tmp_path/"killed"))
    with pytest.raises(UserError, match="another compile"): start(base, tmp_path/"killed", **kw | dict(compile=False))


def test_without_dropout_the_losses_are_the_plain_ones(base, tmp_path):
    plain, quick = (start(base, tmp_path/str(on), dropout=0., dtype=torch.float32, max_steps=4, compile=on, checkpointing=on) for on in (False, True))
    assert quick.losses == pytest.approx(plain.losses, rel=1e-4)


@pytest.mark.parametrize("broken, words", [(False, r"there is no C\+\+ compiler \(apt install"), (True, "the layers of LlamaForCausalLM cannot be compiled")])
def test_a_missing_or_broken_compiler_is_a_sentence(base, tmp_path, broken, words, monkeypatch):
    import torch._inductor.config as inductor
    torch._dynamo.reset()
    # what is compiled already would not be compiled again
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path/"cache"))
    compiler = tmp_path/"c++"
    if broken:
        compiler.write_text('#!/bin/sh\ntest "$1" = --version && echo c++ 1.0\n')
        compiler.chmod(0o755)
    with inductor.patch({"cpp.cxx": (str(compiler),), "force_disable_caches": True}), pytest.raises(UserError, match=words) as e:
        start(base, tmp_path/"run", max_steps=1, compile=True)
    assert "leave compile out" in str(e.value) and "\n" not in str(e.value) and not list((tmp_path/"run/checkpoints").iterdir())


def test_a_model_without_layers_is_refused():
    from transformers import AutoConfig, AutoModelForImageClassification
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model("resnet", depths=[1], hidden_sizes=[8], embedding_size=8))
    with pytest.raises(UserError, match="ResNetForImageClassification names no layers that could be compiled"):
        with compiled(model): pass


def test_the_last_layer_is_compiled_in_parts_where_its_mlp_sees_labels_alone(tmp_path):
    model = small("llama", tmp_path)
    layers = model.get_base_model().model.layers
    assert compile_units(model) == [layers[0], *layers[1].children()]
