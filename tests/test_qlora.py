"""4-bit bases and their adapters: equal to plain peft, unharmed by an evaluation, saved without pickle, merged."""
import json
import subprocess
import sys

import pytest
import tinychat
import torch
import zoo
from transformers.pytorch_utils import Conv1D

from hfflow.engine.fused import dense_bytes, fast_lora
from hfflow.hub import UserError
from hfflow.qlora import QloraConfig, add_lora, compute_dtype, dense_weight, load_base, load_model, load_tokenizer, merge, save_adapter

IDS = torch.randint(4, 300, (3, 17), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tinychat.save(tmp_path_factory.mktemp("base"), hidden=64)


def adapted(base, bits=4, b=0.05, **kw):
    """A model whose adapter is not zero any more."""
    model = add_lora(load_base(base, bits), QloraConfig(bits=bits, rank=4, **kw))
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name: p.data.normal_(0, b)
    return model


def gradients(model, ids=IDS):
    """Loss and gradients of a plain step."""
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def error(grads, truth):
    """Distance of two sets of gradients, relative to their length."""
    assert grads.keys() == truth.keys()
    return float(sum((grads[k].float() - truth[k]).square().sum() for k in truth).sqrt() / sum(t.square().sum() for t in truth.values()).sqrt())


def same(a, b, **kw): return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], **kw) for k in a)


def test_each_of_several_processes_loads_on_its_own_gpu(base, monkeypatch):
    asked = []
    def load(name, revision, bits, device, *rest):
        asked.append(device)
        raise KeyboardInterrupt
    monkeypatch.setattr("hfflow.engine.loading.load_in_bits", load)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for device in ("cuda", "cpu", "cuda:0"):
        with pytest.raises(KeyboardInterrupt): load_base(base, device=device)
    assert asked == ["cuda:1", "cpu", "cuda:0"]


@pytest.mark.parametrize("bits", [4, 16, 32])
def test_a_fresh_adapter_changes_nothing(base, bits):
    model = load_base(base, bits)
    with torch.no_grad():
        before = model(IDS).logits
        peft = add_lora(model, QloraConfig(bits=bits))
        assert torch.equal(peft(IDS).logits, before)
        with fast_lora(peft): assert torch.allclose(peft(IDS).logits, before, atol=1e-5)
    learn = [n for n, p in peft.named_parameters() if p.requires_grad]
    assert all("lora_" in n and "lm_head" not in n for n in learn) and len(learn) == 2 * 7 * 2     # A and B, 7 linear layers, 2 blocks


def test_same_seed_same_start(base):
    first, again, other = (add_lora(load_base(base), seed=s).state_dict() for s in (3, 3, 4))
    key = next(k for k in first if "lora_A" in k)
    assert torch.equal(first[key], again[key]) and not torch.equal(first[key], other[key])
    state = torch.get_rng_state()
    add_lora(load_base(base), seed=5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("bits,cache", [(4, True), (4, False), (16, None), (32, None)])
@pytest.mark.parametrize("rslora", [False, True])
def test_fast_forward_is_pefts(base, bits, cache, rslora):
    model = adapted(base, bits, rslora=rslora).train()
    loss, grads = gradients(model)
    with fast_lora(model, cache): fast_loss, fast_grads = gradients(model)
    assert torch.allclose(loss, fast_loss, rtol=1e-5) and error(fast_grads, grads) < 1e-5
    again, back = gradients(model)                       # afterwards the model is peft's again, to the bit
    assert torch.equal(loss, again) and all(torch.equal(grads[k], back[k]) for k in grads)
    assert not any("forward" in vars(m) for m in model.modules())


def test_cached_weights_give_bitwise_the_same(base):
    model = adapted(base).train()
    with fast_lora(model, True): loss, grads = gradients(model)
    with fast_lora(model, False): loss2, grads2 = gradients(model)
    assert torch.equal(loss, loss2) and all(torch.equal(grads[k], grads2[k]) for k in grads)
    assert dense_bytes(model) == sum(l.in_features * l.out_features * 4 for l in model.modules() if type(l).__module__.startswith("bitsandbytes"))


def test_fast_forward_with_few_rows_and_with_bias():
    """Few rows: the adapter is not folded into W. Biases, and a base that needs no gradient of its input, go the same way."""
    from peft import LoraConfig, get_peft_model
    for n in (2, 500):
        torch.manual_seed(0)
        net = get_peft_model(torch.nn.Sequential(torch.nn.Linear(48, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)), LoraConfig(r=4, target_modules=["0", "2"]))
        for name, p in net.named_parameters():
            if "lora_B" in name: p.data.normal_(0, .1)
        x = torch.randn(n, 48)
        def step():
            net.zero_grad()
            net(x).square().sum().backward()
            return {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}
        plain = step()
        with fast_lora(net): assert same(plain, step(), rtol=1e-3, atol=1e-4)


def test_the_result_of_the_fast_forward_may_be_changed_in_place(base):
    """As DeBERTa and Longformer do with theirs."""
    from peft import LoraConfig, get_peft_model
    net = get_peft_model(torch.nn.Sequential(torch.nn.Linear(48, 32)), LoraConfig(r=4, target_modules=["0"]))
    for n in (2, 500):
        plain, x = net(torch.ones(1, n, 48)).mul_(2), torch.ones(1, n, 48)
        with fast_lora(net): assert torch.allclose(net(x).mul_(2), plain, atol=1e-5)


def test_fast_forward_in_bf16_is_as_close_to_fp32_as_pefts(base):
    exact = adapted(base, 32)
    half = adapted(base, 32)
    for name, p in half.named_parameters():
        if "lora_" not in name: p.data = p.data.bfloat16()
    for name, p in exact.named_parameters(): p.data = p.data.bfloat16().float() if "lora_" not in name else p.data
    truth = gradients(exact)[1]
    plain = error(gradients(half)[1], truth)
    with fast_lora(half): fast = error(gradients(half)[1], truth)
    assert fast < max(1.3 * plain, .03)


def test_dropout_variants_and_switched_off_adapters_stay_with_peft(base):
    model = adapted(base, dropout=0.5)
    with fast_lora(model): assert not any("forward" in vars(m) for m in model.modules())
    model = adapted(base)
    with torch.no_grad(), model.disable_adapter(): off = model(IDS).logits
    with fast_lora(model), torch.no_grad(), model.disable_adapter(): assert torch.equal(model(IDS).logits, off)
    with torch.no_grad(): assert not torch.allclose(model(IDS).logits, off)


def test_evaluating_does_not_change_training(base):
    """On CPUs with bf16 instructions bitsandbytes repacks the weights in the first eval forward, unless it is told not to."""
    model = adapted(base).train()
    assert all(m.support_avx512bf16_for_cpu is False for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu"))
    loss, grads = gradients(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.eval()
    with torch.no_grad(): model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False, pad_token_id=1)
    model.train()
    loss2, grads2 = gradients(model)
    assert torch.equal(loss, loss2) and all(torch.equal(grads[k], grads2[k]) for k in grads)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_quantised_as_bitsandbytes_does_it(base):
    """NF4 with blocks of 64 and quantised scales: at most half a step of the widest gap off, and no more than 5 bits each."""
    full, low = load_base(base, 32), load_base(base, 4)
    w, q = full.model.layers[0].mlp.up_proj.weight, low.model.layers[0].mlp.up_proj
    dense = dense_weight(q)
    scale = w.reshape(-1, 64).abs().amax(1, keepdim=True).expand(-1, 64).reshape(w.shape)
    assert ((dense - w).abs() <= .16 * scale + 1e-3).all() and q.weight.numel() == w.numel() // 2
    assert q.weight.quant_state.nested and q.weight.quant_state.quant_type == "nf4"
    assert low.lm_head.weight.dtype == torch.float32 == low.model.embed_tokens.weight.dtype or compute_dtype("cpu") != torch.float32


def test_saved_adapter_is_plain_peft_and_has_no_pickle(base, tmp_path):
    from peft import AutoPeftModelForCausalLM, PeftModel
    model, tok = adapted(base), load_tokenizer(base)
    folder = save_adapter(model, tok, tmp_path/"adapter")
    files = {p.name for p in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "qlora.json"} <= files
    assert not any(f.endswith((".bin", ".pt", ".pkl", ".md")) for f in files)
    assert sum(p.stat().st_size for p in folder.glob("*.safetensors")) < 200_000         # no base in it
    model.eval()
    with torch.no_grad(): want = model(IDS).logits
    ours, tok2 = load_model(folder)
    theirs = PeftModel.from_pretrained(load_base(base), folder).eval()
    with torch.no_grad(): assert torch.equal(ours(IDS).logits, want) and torch.equal(theirs(IDS).logits, want)
    assert not ours.training and tok2.eos_token == tok.eos_token and json.loads((folder/"qlora.json").read_text())["bits"] == 4
    assert type(load_model(folder, bits=32)[0].get_base_model().model.layers[0].mlp.up_proj.get_base_layer()).__name__ == "Linear"
    assert AutoPeftModelForCausalLM.from_pretrained(folder) is not None


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_merged_model_is_an_ordinary_one(base, tmp_path, bits):
    from transformers import AutoModelForCausalLM
    model = adapted(base, bits).eval()
    with torch.no_grad(): want = model(IDS).logits
    merged = merge(model)
    with torch.no_grad(): assert (merged(IDS).logits - want).norm() < (.1 if bits == 8 else 1e-5) * want.norm()   # 8: its inputs are rounded too
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad(): assert torch.allclose(again(IDS).logits, merged(IDS).logits, atol=1e-5)
    assert "quantization_config" not in json.loads((tmp_path/"config.json").read_text()) and (tmp_path/"model.safetensors").exists()
    load_tokenizer(base).save_pretrained(tmp_path)
    with torch.no_grad(): assert torch.allclose(load_model(tmp_path, 32)[0](IDS).logits, want, atol=1 if bits == 8 else 1e-4)


def test_merging_into_what_training_saw_is_the_exact_one(base):
    """Into the de-quantised base the delta survives; into the original weights it meets another base."""
    model = adapted(base, b=.01).eval()
    with torch.no_grad(): want = model(IDS).logits
    other = add_lora(load_base(base, 32), QloraConfig(rank=4))
    other.load_state_dict({k: v for k, v in model.state_dict().items() if "lora_" in k}, strict=False)
    into_original = merge(other.eval())
    into_seen = merge(model)
    with torch.no_grad():
        assert (into_seen(IDS).logits - want).abs().max() < .01 * (into_original(IDS).logits - want).abs().max()


def test_merge_to_half_precision_keeps_rotary_frequencies(base):
    merged = merge(adapted(base), torch.bfloat16)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16} and merged.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("kind", ["gpt2"])
def test_layers_that_are_no_linear_ones(kind):
    model = add_lora(tinychat.model(tinychat.tokenizer(), kind=kind), QloraConfig(bits=32, rank=4))
    for n, p in model.named_parameters():
        if "lora_B" in n: p.data.normal_(0, .05)
    model.eval()
    with torch.no_grad():
        want = model(IDS).logits
        assert torch.allclose(merge(model)(IDS).logits, want, atol=1e-4)


def test_refusals(base, tmp_path):
    for kw, word in ((dict(bits=3), "bits is 3"), (dict(rank=0), "rank is 0"), (dict(dropout=1.), "dropout is 1")):
        with pytest.raises(UserError, match=word): QloraConfig(**kw)
    with pytest.raises(UserError, match="no setting 'ranks': the nearest is 'rank'"): QloraConfig(ranks=3)
    with pytest.raises(UserError, match="rank is 'many'"): QloraConfig(rank="many")
    with pytest.raises(UserError, match="bits is 5"): load_base(base, 5)
    with pytest.raises(UserError, match="does not exist"): load_base(tmp_path/"nowhere")
    with pytest.raises(UserError, match="no config.json"): load_base(tmp_path)
    with pytest.raises(UserError, match="No layer"): add_lora(load_base(base), QloraConfig(targets=["nothing"]))
    assert QloraConfig(rank=8).alpha is None and add_lora(load_base(base), QloraConfig(rank=8)).peft_config["default"].lora_alpha == 16


# --- architectures

@pytest.fixture(scope="module")
def zoo_base(tmp_path_factory):
    """Folder of a saved model of an architecture, each made once."""
    made = {}
    def folder(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            zoo.model(kind).save_pretrained(made[kind])
            tinychat.tokenizer().save_pretrained(made[kind])
        return made[kind]
    return folder


def logits(model, kind):
    batch = {k: v for k, v in zoo.batch(kind).items() if k != "labels"}
    if kind in zoo.SEQ2SEQ: batch["decoder_input_ids"] = zoo.batch(kind)["labels"]
    with torch.no_grad(): return model(**batch).logits


def learning(model): return {n: p for n, p in model.named_parameters() if p.requires_grad}


def steps(model, kind, n=3):
    """Losses of a few AdamW steps; dropout as the step's number says."""
    opt, losses = torch.optim.AdamW(learning(model).values(), lr=1e-2), []
    model.train()
    for i in range(n):
        torch.manual_seed(i)
        loss = model(**zoo.batch(kind, i)).loss
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def one_step(model, kind):
    """Gradients of what learns, always of the same batch and dropout."""
    torch.manual_seed(0)
    model.train().zero_grad()
    model(**zoo.batch(kind)).loss.backward()
    return {n: p.grad.clone() for n, p in learning(model).items()}


@pytest.mark.parametrize("bits", [4, 32])
@pytest.mark.parametrize("kind", [kind for kind in zoo.CONFIGS if kind not in ("gpt_oss", "jamba", "phimoe")])   # where peft's all-linear leaves out the experts
def test_every_architecture_begins_as_its_base_and_learns_as_in_plain_peft(zoo_base, kind, bits, tmp_path):
    from peft import LoraConfig, get_peft_model
    if kind == "falcon" and bits == 4:
        with pytest.raises(UserError, match="FalconForCausalLM.*bits=16"): load_base(zoo_base(kind), 4)
        return
    model = load_base(zoo_base(kind), bits)
    before = logits(model, kind)
    ours = add_lora(model, QloraConfig(bits=bits, rank=4), seed=3)
    rounding = 1e-5 if kind == "mamba" else 0                                # whose products may lie otherwise in memory
    assert (logits(ours, kind) - before).abs().max() <= rounding

    # what learns: every linear layer of the body, no output layer; a classifier's head as a whole
    base, head = ours.get_base_model(), ours.get_base_model().get_output_embeddings()
    linear = {n for n, m in model.named_modules() if hasattr(m, "lora_A")}
    read = zoo.READ.get(kind, ())
    plain = {n for n, m in zoo.model(kind).named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and n.split(".")[-1] not in read}
    heads = {n for n in plain if n.split(".")[0] in ("classifier", "pre_classifier", "pooler", "score", "lm_head", "proj_out")}
    experts = {f"model.layers.{i}.mlp.{n}" for i in (0, 1) for n in ("gate", "experts", "experts.base_layer")} if kind in zoo.MIXTURES else set()
    plain = {n for n in plain if "shared_experts" not in n}                   # peft takes their names for those of the others
    assert linear == plain - heads | experts and linear and (head is None or not hasattr(head, "lora_A"))
    whole = {n.split(".")[2] for n in learning(ours) if "lora_" not in n}
    assert whole == ({n.split(".")[0] for n in heads} if kind in zoo.CLASSIFY else set())

    # the same steps in plain peft
    twin = load_base(zoo_base(kind), bits)
    torch.manual_seed(3)
    task = "SEQ_CLS" if kind in zoo.CLASSIFY else None if kind == "whisper" else "SEQ_2_SEQ_LM" if kind in zoo.SEQ2SEQ else "CAUSAL_LM"
    twin = get_peft_model(twin, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=task, exclude_modules=list(read) or None,
                                           modules_to_save={"distilbert": ["pre_classifier"], "deberta-v2": ["pooler"]}.get(kind)))
    theirs = steps(twin, kind)
    with fast_lora(ours): mine = steps(ours, kind)
    assert mine == pytest.approx(theirs, rel=2e-4) and len(set(mine)) == 3
    a, b = learning(ours), learning(twin)
    assert a.keys() == b.keys() and all((a[k] - b[k]).norm() < 2e-2 * b[k].norm() for k in a), {k: float((a[k]-b[k]).norm()/b[k].norm()) for k in a}

    # an evaluation changes nothing that training sees
    if bits == 4:
        first = one_step(ours, kind)
        logits(ours.eval(), kind)
        again = one_step(ours, kind)
        assert all(torch.equal(first[k], again[k]) for k in first)

    # saved and loaded, merged and saved as an ordinary model: the same answers
    ours.eval()
    want = logits(ours, kind)
    assert not torch.allclose(want, before, atol=1e-3)
    back, _ = load_model(save_adapter(ours, load_tokenizer(zoo_base(kind)), tmp_path/"adapter"))
    assert torch.equal(logits(back, kind), want)
    merged = merge(back)
    assert torch.allclose(logits(merged, kind), want, atol=2e-3)
    merged.save_pretrained(tmp_path/"merged")
    ordinary = type(merged).from_pretrained(tmp_path/"merged").eval()
    assert (logits(ordinary, kind) - logits(merged, kind)).abs().max() <= rounding


@pytest.mark.parametrize("kind", zoo.READ)
def test_layers_that_the_model_never_calls_are_neither_rounded_nor_adapted(zoo_base, kind):
    base = load_base(zoo_base(kind), 4)
    apart = {n: m for n, m in base.named_modules() if n.split(".")[-1] in zoo.READ[kind]}
    assert apart and not any(hasattr(m.weight, "quant_state") for m in apart.values()) and any(hasattr(p, "quant_state") for p in base.parameters())
    with pytest.raises(UserError, match=f"targets has {zoo.READ[kind][0]}, whose weights .* leave it out"):
        add_lora(base, QloraConfig(targets=["o_proj", zoo.READ[kind][0]]))
    model = add_lora(base, QloraConfig(rank=4))
    assert not any(hasattr(m, "lora_A") for n, m in model.named_modules() if n.split(".")[-1] in zoo.READ[kind])
    start = {n: p.clone() for n, p in learning(model).items() if "lora_B" in n}
    steps(model, kind, 2)
    assert start and not [n for n, p in start.items() if torch.equal(p, learning(model)[n])]


def test_a_model_that_looks_at_the_type_of_a_weight_keeps_it(zoo_base):
    """LongT5 casts to it: in 4 bits its activations would be cut to whole numbers."""
    low = load_base(zoo_base("longt5"), 4)
    before = logits(low, "longt5")
    assert torch.allclose(logits(merge(low), "longt5"), before, atol=1e-4)


# --- variants

def trained(kind, folder, cfg, n=2):
    """A model of that configuration after a few steps, beside its losses."""
    model = add_lora(load_base(folder, cfg.bits), cfg)
    return model, steps(model, kind, n)


VARIANTS = [dict(bits=32, dora=True), dict(bits=4, dora=True), dict(bits=4, dora=True, dropout=.3, rslora=True),
            dict(bits=32, init="pissa"), dict(bits=32, init="pissa_niter_4", rslora=True), dict(bits=32, init="olora"), dict(bits=32, init="pissa", dora=True),
            dict(bits=16, init="pissa"), dict(bits=4, init="loftq"), dict(bits=8, init="loftq"), dict(bits=4, init="loftq", dora=True)]


CASES = [("llama", kw) for kw in VARIANTS] + [(kind, kw) for kind in ("gpt2", "bert", "t5") for kw in
    (dict(bits=4, dora=True), dict(bits=32, dora=True), dict(bits=32, init="pissa"), dict(bits=32, init="olora"), dict(bits=4, init="loftq"))]


@pytest.mark.parametrize("kind,kw", CASES, ids=lambda x: x if isinstance(x, str) else "-".join(f"{k}={v}" for k, v in x.items()))
def test_every_variant_learns_and_comes_back_as_it_was(zoo_base, kind, kw, tmp_path):
    if kind == "gpt2" and kw.get("init") == "olora":
        with pytest.raises(UserError, match="Conv1D"): add_lora(load_base(zoo_base(kind), 32), QloraConfig(**kw))
        return
    cfg = QloraConfig(rank=4, **kw)
    base = load_base(zoo_base(kind), cfg.bits)
    before = logits(base, kind)
    model = add_lora(base, cfg)
    start = logits(model, kind)
    if cfg.init != "loftq": assert torch.allclose(start, before, atol=2e-3)
    assert len(set(steps(model, kind, 2))) == 2
    want = logits(model, kind)
    assert not torch.allclose(want, start, atol=1e-3)

    with fast_lora(model): fast = logits(model, kind)                  # exactly so, or by peft's own forward
    assert torch.allclose(fast, want, atol=1e-3) and (not cfg.dora or torch.equal(fast, want))
    folder = save_adapter(model, None, tmp_path/"adapter")
    load_tokenizer(zoo_base(kind)).save_pretrained(folder)
    assert logits(model, kind).equal(want) and model.peft_config["default"].r == 4     # saving leaves the model alone
    back, _ = load_model(folder)
    assert torch.allclose(logits(back, kind), want, atol=1e-3 if cfg.bits == 32 else 1e-5)
    off = logits(merge(model), kind) - want
    assert off.norm() < (.1 if cfg.bits == 8 else 1e-3) * want.norm()
    assert (logits(merge(back), kind) - want).norm() < (.1 if cfg.bits == 8 else 1e-3) * want.norm()


def test_pissa_takes_the_largest_part_of_the_weight(zoo_base):
    layer = add_lora(load_base(zoo_base("llama"), 32), QloraConfig(bits=32, rank=4, init="pissa")).get_base_model().model.layers[0].mlp.up_proj
    w = load_base(zoo_base("llama"), 32).model.layers[0].mlp.up_proj.weight
    kept = torch.linalg.svdvals(layer.base_layer.weight)
    assert torch.allclose(kept[:8], torch.linalg.svdvals(w)[4:12], atol=1e-4)      # the four largest singular values are gone, in A and B


def test_loftq_starts_nearer_to_the_weights_from_before_rounding(zoo_base):
    exact, low = load_base(zoo_base("llama"), 32), add_lora(load_base(zoo_base("llama"), 4), QloraConfig(rank=8, init="loftq"))
    layer, w = low.get_base_model().model.layers[0].mlp.up_proj, exact.model.layers[0].mlp.up_proj.weight
    lost = w - dense_weight(layer.get_base_layer())
    best = torch.linalg.svdvals(lost)[8:].square().sum().sqrt()                     # Eckart and Young: no matrix of rank 8 leaves less
    assert (lost - layer.get_delta_weight("default")).norm() < 1.02 * best < lost.norm()
    plain = add_lora(load_base(zoo_base("llama"), 4), QloraConfig(rank=8))
    truth = logits(exact, "llama")
    both = add_lora(load_base(zoo_base("llama"), 4), QloraConfig(rank=8, init="loftq", dora=True))
    assert torch.allclose(logits(both, "llama"), logits(low, "llama"), atol=1e-3)
    assert (logits(low, "llama") - truth).norm() < .9 * (logits(plain, "llama") - truth).norm()


@pytest.mark.parametrize("kind", ["llama_tied", "gpt2", "distilbert", "whisper"])
@pytest.mark.parametrize("bits", [16, 32])
def test_full_fine_tuning_trains_saves_and_loads_every_weight(zoo_base, kind, bits, tmp_path):
    model, losses = trained(kind, zoo_base(kind), QloraConfig(bits=bits, full=True))
    assert all(p.requires_grad for p in model.parameters()) and losses[1] != losses[0]
    want = logits(model, kind)
    folder = save_adapter(model, load_tokenizer(zoo_base(kind)), tmp_path/"model")
    assert {"model.safetensors", "config.json", "qlora.json"} <= {p.name for p in folder.iterdir()} and not (folder/"adapter_config.json").exists()
    back, _ = load_model(folder)
    assert back.hfflow_base["bits"] == bits and torch.equal(logits(back, kind), want) and torch.equal(logits(merge(back), kind), want)
    twin = load_base(zoo_base(kind), bits)
    for p in twin.parameters(): p.requires_grad_(True)
    assert steps(twin, kind, 2) == losses


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
@pytest.mark.parametrize("bits", [8, 16])
def test_8_and_16_bits_train_and_an_evaluation_changes_nothing(zoo_base, kind, bits):
    model = add_lora(load_base(zoo_base(kind), bits), QloraConfig(bits=bits, rank=4))
    losses = steps(model, kind, 4)
    first = one_step(model, kind)
    logits(model.eval(), kind)
    second = one_step(model, kind)
    assert len(set(losses)) == 4 and all(torch.isfinite(g).all() and torch.equal(g, second[n]) for n, g in first.items())
    truth = add_lora(load_base(zoo_base(kind), 32), QloraConfig(bits=32, rank=4))
    assert losses[0] == pytest.approx(steps(truth, kind, 1)[0], rel=.15 if bits == 8 else .02)


# --- classifiers

def test_a_plain_model_becomes_a_classifier_whose_head_is_kept(tmp_path):
    """BERT as pretrained: no head, and no pooler either. Both start the same each time, learn whole, and are saved."""
    import transformers as tf
    torch.manual_seed(0)
    tf.BertForMaskedLM(zoo.config("bert")).save_pretrained(tmp_path/"base")
    tinychat.tokenizer().save_pretrained(tmp_path/"base")
    with pytest.raises(UserError, match="BertForMaskedLM.*task='classify'"): load_base(tmp_path/"base", 32)
    with pytest.raises(UserError, match="no labels yet"): load_base(tmp_path/"base", 32, task="classify")
    with pytest.raises(UserError, match="task is 'tag'"): load_base(tmp_path/"base", 32, task="tag")
    with pytest.raises(UserError, match="cannot load for the task 'seq2seq'"): load_base(tmp_path/"base", 32, task="seq2seq")
    for bits in (4, 8, 16, 32):
        model = load_base(tmp_path/"base", bits, task="classify", labels=["no", "yes"])
        torch.rand(3)                                                   # whatever others draw
        again = load_base(tmp_path/"base", bits, task="classify", labels=["no", "yes"])
        assert torch.equal(model.classifier.weight, again.classifier.weight) and model.config.label2id == {"no": 0, "yes": 1}
        model = add_lora(model, QloraConfig(bits=bits, rank=4))
        whole = {n for n in learning(model) if "lora_" not in n}
        assert {n.split("base_model.model.")[1].split(".modules_to_save")[0] for n in whole} == {"classifier", "bert.pooler.dense"}
        batch = zoo.batch("bert") | {"labels": torch.tensor([0, 1, 1])}
        opt = torch.optim.AdamW(learning(model).values(), lr=1e-2)
        for _ in range(2):
            opt.zero_grad()
            model(**batch).loss.backward()
            opt.step()
        want = logits(model.eval(), "bert")
        model.config.problem_type = "single_label_classification"
        back, _ = load_model(save_adapter(model, load_tokenizer(tmp_path/"base"), tmp_path/f"adapter{bits}"))
        assert torch.equal(logits(back, "bert"), want) and back.config.id2label == {0: "no", 1: "yes"}
        assert back.config.problem_type == "single_label_classification"
        assert (logits(merge(back), "bert") - want).norm() < (.1 if bits == 8 else 1e-4) * want.norm()


def test_a_model_without_its_output_layer_is_refused(tmp_path):
    zoo.model("llama").model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no output layer for the task 'causal'"): load_base(tmp_path, 4)


def test_a_classifiers_head_stays_exact_in_half_precision(zoo_base, tmp_path, monkeypatch):
    monkeypatch.setattr("hfflow.engine.loading.compute_dtype", lambda device=None: torch.bfloat16)
    for kind in ("roberta", "gpt2_labels"):
        model = add_lora(load_base(zoo_base(kind), 4), QloraConfig(rank=4))
        heads = {n: p for n, p in learning(model).items() if "lora_" not in n}
        assert {p.dtype for p in heads.values()} == {torch.float32} and model.get_base_model().get_input_embeddings().weight.dtype == torch.bfloat16
        steps(model, kind, 2)
        want = logits(model, kind)
        back, _ = load_model(save_adapter(model, load_tokenizer(zoo_base(kind)), tmp_path/kind))
        assert torch.equal(logits(back, kind), want)
        merged = merge(back)
        assert {p.dtype for p in merged.parameters()} == {torch.bfloat16} and torch.isfinite(logits(merged, kind)).all()


def test_labels_of_another_number_replace_a_head(zoo_base):
    assert load_base(zoo_base("bert"), 4).config.num_labels == 3
    model = load_base(zoo_base("bert"), 4, labels=["a", "b", "c", "d", "e"])
    assert model.classifier.weight.shape == (5, 64) and add_lora(model).peft_config["default"].modules_to_save[0] == "classifier"


# --- where the fused forward steps aside

def test_fast_lora_steps_aside_for_several_adapters_and_trained_biases(zoo_base):
    from peft import LoraConfig, get_peft_model
    model = add_lora(load_base(zoo_base("qwen2"), 4), QloraConfig(rank=4))
    with fast_lora(model):
        assert any("forward" in vars(m) for m in model.modules())
        model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))   # B is not zero
        model.set_adapter("second")
        inside = logits(model, "qwen2")
    assert torch.equal(logits(model, "qwen2"), inside)                  # peft's answer, with the adapter that is active now
    with fast_lora(model): assert not any("forward" in vars(m) for n, m in model.named_modules() if n.endswith("q_proj"))

    model = get_peft_model(load_base(zoo_base("qwen2"), 32), LoraConfig(r=4, target_modules="all-linear", bias="all", task_type="CAUSAL_LM"))
    def step():
        model.zero_grad()
        model(**zoo.batch("qwen2")).loss.backward()
        return {n: p.grad.clone() for n, p in learning(model).items()}
    plain = step()
    with fast_lora(model): fast = step()
    assert any("q_proj.base_layer.bias" in n for n in plain) and plain.keys() == fast.keys()
    assert all(torch.allclose(plain[k], fast[k], atol=1e-5) for k in plain)


def test_merging_trained_embeddings(zoo_base):
    model = add_lora(load_base(zoo_base("llama"), 4), QloraConfig(rank=4, targets=["embed_tokens", "q_proj"]))
    steps(model, "llama", 2)
    want = logits(model, "llama")
    assert torch.allclose(logits(merge(model), "llama"), want, atol=1e-4)


def test_refusals_of_variants(zoo_base, tmp_path):
    for kw, word in ((dict(init="pissa"), "4-bit weights cannot be changed.*loftq"), (dict(init="olora", bits=8), "8-bit weights"), (dict(init="svd"), "init is 'svd'"),
                     (dict(init="loftq", bits=16), "bits is 16"), (dict(full=True), "4-bit weights cannot learn"), (dict(full=True, bits=32, dora=True), "no adapter that dora")):
        with pytest.raises(UserError, match=word): QloraConfig(**kw)
    low = load_base(zoo_base("llama"), 4)                               # the model decides, whatever the config says of its bits
    for kw, word in ((dict(init="pissa"), "4-bit weights cannot be changed"), (dict(full=True), "4-bit weights cannot learn")):
        with pytest.raises(UserError, match=word): add_lora(low, QloraConfig(bits=32, **kw))
    with pytest.raises(UserError, match="bits is 32"): add_lora(load_base(zoo_base("llama"), 32), QloraConfig(init="loftq"))
    with pytest.raises(UserError, match="8-bit weights on a CPU"): add_lora(load_base(zoo_base("llama"), 8), QloraConfig(bits=8, dora=True))
    for kw in (dict(dora=True), dict(dropout=.1), dict(init="pissa")):
        with pytest.raises(UserError, match="experts of MixtralForCausalLM"): add_lora(load_base(zoo_base("mixtral"), 32), QloraConfig(bits=32, **kw))
    some = add_lora(load_base(zoo_base("mixtral"), 32), QloraConfig(bits=32, dora=True, targets=["q_proj", "v_proj"]))
    assert {n.split(".")[-4] for n in learning(some) if "lora_A" in n} == {"q_proj", "v_proj"}


def test_eight_bits_say_nothing_at_each_call(tmp_path):
    zoo.model("llama").save_pretrained(tmp_path)
    code = ("from hfflow.qlora import add_lora, load_base, QloraConfig; import sys, torch; m = add_lora(load_base(sys.argv[1], 8), QloraConfig(8));"
            "m(input_ids=torch.arange(3, 9)[None]).logits.sum().backward()")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "MatMul8bitLt" not in done.stderr + done.stdout, done.stderr[-500:]
