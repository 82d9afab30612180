"""The loss: padded, packed, on label tokens only, in chunks; its value and gradients against the plain way, for many architectures."""
import math

import pytest
import tinychat
import torch

import hfflow.loss as loss_module
from hfflow.hub import UserError
from hfflow.loss import batch_loss, batch_tokens, make_batch, packed_attention
from hfflow.qlora import QloraConfig, add_lora, load_base, load_tokenizer
from hfflow.tokens import collate, encode_dataset, pack

IDS = dict(vocab_size=320, eos_token_id=0, pad_token_id=1, bos_token_id=None)
SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
ROPE = dict(SMALL, num_key_value_heads=4)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
CONFIGS = {     # model type -> what its config needs to be small
    "llama": SMALL, "qwen2": SMALL, "qwen3": dict(SMALL, head_dim=8, tie_word_embeddings=True), "mistral": dict(SMALL, sliding_window=8),
    "gemma": dict(SMALL, head_dim=8), "gemma2": dict(SMALL, head_dim=8, final_logit_softcapping=1., query_pre_attn_scalar=8, sliding_window=8),
    "gemma3_text": dict(SMALL, head_dim=8, sliding_window=6, query_pre_attn_scalar=8), "phi": ROPE, "phi3": SMALL, "olmo2": ROPE, "stablelm": ROPE,
    "starcoder2": dict(SMALL, sliding_window=8), "cohere": SMALL, "glm": dict(SMALL, head_dim=8), "smollm3": SMALL, "granite": dict(SMALL, logits_scaling=4.),
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "gpt_neox": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128),
    "opt": dict(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128, word_embed_proj_dim=32),
    "mixtral": dict(SMALL, num_local_experts=4), "qwen3_moe": dict(SMALL, head_dim=8, **EXPERTS), "gpt_oss": dict(SMALL, head_dim=8, num_local_experts=4),
    "falcon": dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=False, bias=False),
    "bloom": dict(hidden_size=32, n_layer=2, n_head=4), "mamba": dict(hidden_size=32, state_size=4, num_hidden_layers=2),
    "lfm2": dict(SMALL, layer_types=["conv", "full_attention"]),
}
APART = set(CONFIGS) - {"gpt_oss", "stablelm", "falcon", "bloom", "mamba", "lfm2"}     # sinks, own attention, none: these get a rectangle


def model_of(kind):
    import transformers as tf
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(kind, **CONFIGS[kind], **IDS))
    for p in model.parameters():
        if p.dim() > 1: torch.nn.init.normal_(p, std=.15)
    return model


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
    targets = ["in_proj", "x_proj"] if kind == "mamba" else "all-linear"
    model = add_lora(model_of(kind), QloraConfig(bits=32, rank=4, targets=targets)).eval()       # GPT-2 and OPT bring dropout of their own
    for n, p in model.named_parameters():
        if "lora_B" in n: p.data.normal_(0, .1)
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_and_gradients_are_those_of_full_logits_with_a_mask(kind, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 5 * 320 * 4)                    # several chunks
    model, rows = adapted(kind), rows_of((17, 5, 11, 5))
    padded = collate(rows, 1)
    want = plain_loss(model, padded)
    wanted = grads(model, want)
    paths = loss_module._paths(model)
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
    paths, exact = loss_module._paths(model_of(kind).bfloat16()), loss_module._paths(model_of(kind))
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
    calls, attend = [], loss_module._attend
    monkeypatch.setattr(loss_module, "_attend", lambda q, *a: calls.append(tuple(q.shape)) or attend(q, *a))
    model = model_of("llama")
    batch = make_batch(model, rows_of((9, 4, 9, 4, 4)), 1)
    calls.clear()
    batch_loss(model, batch)
    assert calls == [(3, 4, 4, 8), (2, 4, 9, 8)] * 2                          # (documents, heads, tokens, width), two layers


def test_attention_is_what_it_was_afterwards():
    model = model_of("gemma2")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ZeroDivisionError), packed_attention(model): 1 / 0
    batch_loss(model, make_batch(model, rows_of((5, 6)), 1))
    assert model.config._attn_implementation == "eager"


def test_a_mask_beside_packed_documents_never_mixes_them():
    model, rows = model_of("llama"), rows_of((7, 9))
    batch = pack(rows)
    good = batch_loss(model, batch)[0]
    assert torch.equal(batch_loss(model, dict(batch, attention_mask=torch.ones_like(batch["input_ids"])))[0], good)


def test_a_model_that_mixes_documents_is_refused_a_packed_batch():
    with pytest.raises(UserError, match="MambaForCausalLM does not keep packed documents apart"): batch_loss(model_of("mamba"), pack(rows_of((5, 6))))


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
    model = model_of("llama")
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
