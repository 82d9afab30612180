"""Rows, batches and loss of every task: equal to transformers' own loss, refused by name where they do not fit."""
import shutil

import numpy as np
import pytest
import tinychat
import torch
import zoo

from hfflow.evaluate import held_out_loss
from hfflow.engine.fused import fast_lora
from hfflow.hub import UserError
from hfflow.engine.loss import make_batch
from hfflow.qlora import QloraConfig, add_lora
from hfflow.engine.tasks import encode_rows, task_collate, task_loss, task_of
from hfflow.tokens import collate, encode_dataset
from hfflow.train import TrainConfig, fit

TOK = tinychat.tokenizer()
WORDS = "please tune llama on acme reviews three epochs".split()
TEXTS = [" ".join(WORDS[i:i + n]) for i, n in ((0, 3), (2, 1), (1, 6), (3, 4))]


def rows_for(kind, labels=(0, 2, 1, 0)):
    if kind in zoo.CLASSIFY: return [{"text": t, "label": l} for t, l in zip(TEXTS, labels)]
    if kind == "whisper":
        g = np.random.default_rng(0)
        return [{"audio": g.normal(0, .1, 9000 + 100 * i).astype("float32"), "sampling_rate": 16_000, "text": t[:12 + i]} for i, t in enumerate(TEXTS)]
    return [{"prompt": t, "completion": t[:4 + 2 * i]} for i, t in enumerate(TEXTS)]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("kind", [*zoo.CLASSIFY, *zoo.SEQ2SEQ, "llama"])
def test_the_loss_is_transformers_own(kind, adapter):
    model = zoo.model(kind)
    want = "classify" if kind in zoo.CLASSIFY else "seq2seq" if kind in zoo.SEQ2SEQ else "causal"
    if adapter:
        model = add_lora(model, QloraConfig(bits=32, rank=4)).eval()
        for n, p in model.named_parameters():
            if "lora_B" in n: torch.nn.init.normal_(p, std=.05)
    assert task_of(model) == want
    rows, stats = encode_rows(rows_for(kind), TOK, model)
    batch = task_collate(rows, TOK.pad_token_id, model)
    loss, n = task_loss(model, batch)
    own = model(**(collate(rows, TOK.pad_token_id) if want == "causal" else batch)).loss
    assert n == (4 if want == "classify" else (batch["labels"] != -100).sum())
    assert loss.item() == pytest.approx(own.item() * n, rel=1e-5) and stats.label_tokens == n and stats.rows == 4
    if not adapter: return
    learn = [p for p in model.parameters() if p.requires_grad]
    theirs = torch.autograd.grad(own * n, learn)
    with fast_lora(model): ours = torch.autograd.grad(task_loss(model, batch)[0], learn)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-6) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("kind", [*zoo.CLASSIFY[:3], *zoo.SEQ2SEQ])
def test_losses_of_batches_add_up_and_padding_counts_nothing(kind):
    model = zoo.model(kind)
    rows, _ = encode_rows(rows_for(kind), TOK, model)
    def total(rows):
        with torch.no_grad(): loss, n = task_loss(model, task_collate(rows, TOK.pad_token_id, model))
        return float(loss), n
    whole, parts = total(rows), [total([r]) for r in rows]
    assert whole[0] == pytest.approx(sum(p[0] for p in parts), rel=1e-4) and whole[1] == sum(p[1] for p in parts)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_several_labels_and_numbers(kind):
    model = zoo.model(kind, id2label={0: "bug", 1: "price", 2: "thanks"}, label2id={"bug": 0, "price": 1, "thanks": 2})
    rows, _ = encode_rows(rows_for(kind, [["bug", "price"], [], [2], ["thanks"]]), TOK, model)
    assert [r["label"] for r in rows] == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1]] and model.config.problem_type == "multi_label_classification"
    batch = task_collate(rows, TOK.pad_token_id, model)
    loss, n = task_loss(model, batch)
    assert n == 4 and float(loss) == pytest.approx(float(model(**batch).loss) * 4, rel=1e-5)

    model = zoo.model(kind, num_labels=1)
    rows, _ = encode_rows(rows_for(kind, [.5, 2, -1.5, 3]), TOK, model)
    batch = task_collate(rows, TOK.pad_token_id, model)
    loss, n = task_loss(model, batch)
    assert model.config.problem_type == "regression" and float(loss) == pytest.approx(float(model(**batch).loss) * 4, rel=1e-5)


def test_names_numbers_and_unknown_labels():
    model = zoo.model("bert", id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    rows, _ = encode_rows([{"text": "a", "label": "yes"}, {"prompt": "b", "label": 0}], TOK, model)
    assert [r["label"] for r in rows] == [1, 0] and model.config.problem_type == "single_label_classification"
    for label, word in (("maybe", "'maybe' is not known.*no, yes"), (2, "2 is not known"), (-1, "-1 is not known"), (True, "True is not known"), (["maybe"], "'maybe'")):
        with pytest.raises(UserError, match=word): encode_rows([{"text": "a", "label": label}], TOK, model)
    with pytest.raises(UserError, match="one label and others a list"): encode_rows([{"text": "a", "label": 0}, {"text": "b", "label": [0]}], TOK, model)
    with pytest.raises(UserError, match="columns body.*needs text or prompt"): encode_rows([{"body": "a"}], TOK, model)
    with pytest.raises(UserError, match="needs label"): encode_rows([{"text": "a"}], TOK, model)
    with pytest.raises(UserError, match="no rows"): encode_rows([], TOK, model)
    with pytest.raises(UserError, match="Row 1 has an empty text"): encode_rows([{"text": "a", "label": 0}, {"text": "", "label": 0}], TOK, model)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2_labels", "bart", "t5"])
def test_what_is_too_long_is_cut_and_counted(kind):
    model, long = zoo.model(kind), "tune " * 200
    rows = [{"text": long, "label": 1}, {"text": "tune", "label": 0}] if kind in zoo.CLASSIFY else [{"prompt": long, "completion": "a"}, {"prompt": "b", "completion": long}]
    out, stats = encode_rows(rows, TOK, model)
    limit = {"roberta": 62, "t5": None}.get(kind, 64)
    if kind == "gpt2_labels": limit = model.config.max_position_embeddings
    assert stats.cut == (0 if limit is None else 1 if kind in zoo.CLASSIFY else 2)
    if limit: assert max(len(r["input_ids"]) for r in out) == limit
    with torch.no_grad(): assert torch.isfinite(task_loss(model, task_collate(out, TOK.pad_token_id, model))[0])
    short, stats = encode_rows(rows, TOK, model, max_len=10)
    assert max(len(r["input_ids"]) for r in short) == 10 and stats.cut >= 1
    if kind not in zoo.CLASSIFY: assert short[1]["labels"][-1] == TOK.eos_token_id and len(short[1]["labels"]) == 10   # an answer that ends


def test_sound_is_heard_as_whispers_own_extractor_hears_it():
    from transformers import WhisperFeatureExtractor
    model = zoo.model("whisper")
    rows = rows_for("whisper")
    encoded, stats = encode_rows(rows, TOK, model)
    own = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    for e, r in zip(encoded, rows):
        assert np.array_equal(e["input_features"], own(r["audio"], sampling_rate=16_000, return_tensors="np")["input_features"][0])
        assert e["labels"] == [*TOK(r["text"])["input_ids"], TOK.eos_token_id]
    dicts, _ = encode_rows([{"audio": {"array": r["audio"], "sampling_rate": 16_000}, "text": r["text"]} for r in rows], TOK, model)
    assert np.array_equal(dicts[2]["input_features"], encoded[2]["input_features"]) and stats.cut == 0
    with pytest.raises(UserError, match="8000.*16000"): encode_rows([rows[0] | {"sampling_rate": 8000}], TOK, model)
    with pytest.raises(UserError, match="needs audio"): encode_rows([{"text": "a"}], TOK, model)


def test_the_first_token_of_the_decoder_is_not_learned():
    """Whisper's tokenizer begins its answers with the token that its decoder is started with; the model puts it there itself."""
    from tokenizers import processors
    tok = tinychat.tokenizer()
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<|user|> $A <|endoftext|>", special_tokens=[("<|user|>", 2), ("<|endoftext|>", 0)])
    rows, _ = encode_rows(rows_for("whisper")[:1], tok, zoo.model("whisper"))
    assert rows[0]["labels"][0] != 2 and rows[0]["labels"][-1] == 0 and rows[0]["labels"].count(0) == 1


def test_features_take_the_models_number_format():
    model = zoo.model("whisper").bfloat16()
    rows, _ = encode_rows(rows_for("whisper"), TOK, model)
    batch = task_collate(rows, TOK.pad_token_id, model)
    assert batch["input_features"].dtype == torch.bfloat16 and torch.isfinite(task_loss(model, batch)[0])


def test_causal_rows_and_batches_are_those_of_the_tokens_page():
    model, rows = zoo.model("llama"), [{"prompt": t, "completion": t} for t in TEXTS]
    got, stats = encode_rows(rows, TOK, model, 40)
    want, same = encode_dataset(rows, TOK, 40)
    assert got == want and stats == same
    a, b = task_collate(got, 1, model), make_batch(model, want, 1)
    assert a.keys() == b.keys() and "cu_seq_lens_q" in a and torch.equal(a["input_ids"], b["input_ids"]) and torch.equal(a["labels"], b["labels"])


@pytest.mark.parametrize("kind", ["bert", "gpt2_labels", "t5", "whisper"])
def test_the_loop_trains_every_kind_and_resumes_it_exactly(kind, tmp_path):
    def run(folder):
        model = add_lora(zoo.model(kind), QloraConfig(bits=32, rank=4, dropout=.1))
        cfg = TrainConfig(epochs=3, batch=2, lr=2e-2, save_every=2, threads=1)
        return fit(model, TOK, rows_for(kind), cfg, folder, rows_for(kind)[:3], progress=False), model
    (whole, model), _ = run(tmp_path/"a"), run(tmp_path/"b")
    assert whole.eval_losses[-1][1] < whole.eval_losses[0][1]
    rows, stats = encode_rows(rows_for(kind), TOK, model)
    assert whole.label_tokens == 3 * stats.label_tokens and whole.tokens == (3 * stats.tokens if kind != "whisper" else whole.label_tokens)
    for late in sorted((tmp_path/"b/checkpoints").glob("step-*"))[1:]: shutil.rmtree(late)
    again, _ = run(tmp_path/"b")
    assert again.resumed_from < 6 and again.losses == whole.losses
    assert held_out_loss(model, TOK, rows_for(kind)[:3]).loss == pytest.approx(whole.eval_losses[-1][1], rel=1e-4)
