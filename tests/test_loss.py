"""The loss: padded, packed, on label tokens only, in chunks; its value and gradients against the plain way, for many architectures."""
import math

import pytest
import tinychat
import torch
import zoo

from hfflow.engine import attention, loss as loss_module
from hfflow.engine.attention import packed_attention
from hfflow.engine.loss import batch_loss, batch_tokens, make_batch, paths_of
from hfflow.hub import UserError
from hfflow.qlora import QloraConfig, add_lora, load_base, load_tokenizer
from hfflow.tokens import collate, encode_dataset, pack

APART = set(zoo.CAUSAL) - {"gpt_oss", "stablelm", "falcon", "bloom", "mamba", "lfm2", "jamba"}   # sinks, own attention, none: these get a rectangle


def rows_of(lengths, seed=1):
    g, out = torch.Generator().manual_seed(seed), []
    for n in lengths:
        ids = torch.randint(2, 320, (n,), generator=g).tolist()
        out.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return out


def plain_loss(model, batch):
    """All logits, with the attention mask: what everyone writes first."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")


def grads(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def adapted(kind):
    model = add_lora(zoo.model(kind), QloraConfig(bits=32, rank=4)).eval()      # GPT-2 and OPT bring dropout of their own
    for n, p in model.named_parameters():
        if "lora_B" in n: p.data.normal_(0, .1)
    return model


@pytest.mark.parametrize("kind", zoo.CAUSAL)
def test_loss_and_gradients_are_those_of_full_logits_with_a_mask(kind, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 5 * 320 * 4)                    # several chunks
    model, rows = adapted(kind), rows_of((17, 5, 11, 5))
    padded = collate(rows, 1)
    want = plain_loss(model, padded)
    wanted = grads(model, want)
    paths = paths_of(model)
    assert paths.causal and paths.packed == (kind in APART) and paths.split
    for batch in (padded, make_batch(model, rows, 1)):
        loss, n = batch_loss(model, batch)
        assert n == 26 and batch_tokens(batch) == 38 and math.isclose(loss.item(), want.item(), rel_tol=1e-5)
        assert (grads(model, loss) - wanted).norm() < 1e-4 * wanted.norm()
    assert ("cu_seq_lens_q" in batch) == (kind in APART)
    if kind in ("llama", "qwen3", "mistral"): assert paths.mlp is not None
    assert (paths.scale != 1) == (kind in ("granite", "cohere")) and (paths.cap is not None) == (kind == "gemma2")


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite", "cohere"])
def test_capped_and_scaled_logits_are_found_in_bf16_too(kind):
    paths, exact = paths_of(zoo.model(kind).bfloat16()), paths_of(zoo.model(kind))
    assert paths.split and paths.scale == pytest.approx(exact.scale, rel=1e-2)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite", "mamba"])
def test_smoothed_labels_are_those_of_pytorch(kind, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 5 * 320 * 4)
    model, rows = adapted(kind), rows_of((17, 5, 11))
    batch = collate(rows, 1)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].flatten(0, 1)
    want = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum", label_smoothing=.2)
    wanted = grads(model, want)
    loss, _ = batch_loss(model, make_batch(model, rows, 1), smoothing=.2)
    assert math.isclose(loss.item(), want.item(), rel_tol=1e-5)
    assert (grads(model, loss) - wanted).norm() < 1e-4 * wanted.norm()


def test_documents_of_equal_length_share_one_call(monkeypatch):
    calls, attend = [], attention._attend
    monkeypatch.setattr(attention, "_attend", lambda q, *a: calls.append(tuple(q.shape)) or attend(q, *a))
    model = zoo.model("llama")
    batch = make_batch(model, rows_of((9, 4, 9, 4, 4)), 1)
    calls.clear()
    batch_loss(model, batch)
    assert calls == [(3, 4, 4, 16), (2, 4, 9, 16)] * 2                        # (documents, heads, tokens, width), two layers


def test_attention_is_what_it_was_afterwards():
    model = zoo.model("gemma2")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ZeroDivisionError), packed_attention(model): 1 / 0
    batch_loss(model, make_batch(model, rows_of((5, 6)), 1))
    assert model.config._attn_implementation == "eager"


def test_a_mask_beside_packed_documents_never_mixes_them():
    model, rows = zoo.model("llama"), rows_of((7, 9))
    batch = pack(rows)
    good = batch_loss(model, batch)[0]
    assert torch.equal(batch_loss(model, dict(batch, attention_mask=torch.ones_like(batch["input_ids"])))[0], good)


def test_a_model_that_mixes_documents_is_refused_a_packed_batch():
    with pytest.raises(UserError, match="MambaForCausalLM does not keep packed documents apart"): batch_loss(zoo.model("mamba"), pack(rows_of((5, 6))))


def test_packed_with_gradient_checkpointing():
    model, rows = adapted("llama"), rows_of((17, 5, 11))
    want = grads(model, batch_loss(model, make_batch(model, rows, 1))[0])
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(UserError, match="once more in the backward pass"): batch_loss(model, make_batch(model, rows, 1))
    with packed_attention(model): got = grads(model, batch_loss(model, make_batch(model, rows, 1))[0])
    assert torch.allclose(got, want, atol=1e-5)


def test_packed_in_bf16_is_as_close_to_fp32_as_padded():
    rows, exact, half = rows_of((33, 20, 20, 7)), adapted("llama"), adapted("llama").bfloat16()
    for p in exact.parameters(): p.data = p.data.bfloat16().float()
    truth = grads(exact, plain_loss(exact, collate(rows, 1)))
    error = lambda loss: float((grads(half, loss).float() - truth).norm() / truth.norm())
    assert error(batch_loss(half, make_batch(half, rows, 1))[0]) < 1.3 * error(plain_loss(half, collate(rows, 1))) + .01


def test_full_fine_tuning_trains_the_head_too():
    model = zoo.model("llama")
    batch = collate([{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}], 1)
    got = grads(model, batch_loss(model, batch)[0])
    assert torch.allclose(got, grads(model, plain_loss(model, batch)), atol=1e-5) and model.lm_head.weight.grad.norm() > 0


def test_padding_changes_nothing(tmp_path):
    tinychat.save(tmp_path)
    model = add_lora(load_base(tmp_path), QloraConfig(rank=4))
    texts = [{"prompt": f"tune model {i} on data {i * 7}", "completion": f"base: m{i}" + " x" * i} for i in range(8)]
    rows, _ = encode_dataset(texts, load_tokenizer(tmp_path))
    alone = [batch_loss(model, collate([r], 1)) for r in rows]
    for batch in (collate(rows, 1), pack(rows)):
        together, n = batch_loss(model, batch)
        assert math.isclose(together.item(), sum(l.item() for l, _ in alone), rel_tol=1e-5) and n == sum(k for _, k in alone)
