"""Counting is exact, and the fast greedy loop gives the tokens of `model.generate`."""
import json
import math
import random
from collections import Counter

import pytest
import tinychat
from datasets import Dataset
from hfflow import evaluate as ev
from hfflow.engine import generation
from hfflow.hub import UserError
from hypothesis import given, settings, strategies as st

PROMPTS = [f"{verb} {base} on acme/reviews{'!' * i}" for i, (verb, base) in
           enumerate((v, b) for v in ("tune", "please train", "three epochs of") for b in ("llama", "qwen, rank 16", "q"))]


@pytest.fixture(scope="module")
def tok():
    return tinychat.tokenizer()


def reference(model, tok, prompts, new, stop=None):
    """What transformers' own `generate` answers, one prompt at a time: no batch, no padding."""
    import torch

    out = []
    for p in prompts:
        ids = tok.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        got = model.generate(**ids, max_new_tokens=new, do_sample=False, pad_token_id=tok.pad_token_id)
        got = got[0, ids["input_ids"].shape[1]:].tolist()
        out.append(tok.decode(got[:-1] if got[-1] == stop else got, skip_special_tokens=True))
    return out


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_generate_equals_transformers(tok, kind, batch):
    model = tinychat.model(tok, kind=kind, seed=3)
    assert ev.generate(model, tok, PROMPTS, max_new_tokens=24, batch=batch, progress=False) == reference(model, tok, PROMPTS, 24)


def test_rows_that_finish_leave_and_the_others_go_on(tok):
    """Half of the answers end at once: what the rest says must not change."""
    import torch

    model = tinychat.model(tok, seed=3)
    with torch.no_grad():
        free = generation._greedy(model, generation._prompt_ids(tok, PROMPTS), set(), tok.pad_token_id, 24)
    counts = Counter(t for row in free for t in set(row))
    stop = min(counts, key=lambda t: abs(counts[t] - len(PROMPTS) / 2))       # a token that occurs in about half of the answers
    model.generation_config.eos_token_id = [tok.eos_token_id, stop]           # now ends an answer
    got = ev.generate(model, tok, PROMPTS, max_new_tokens=24, progress=False)
    assert got == reference(model, tok, PROMPTS, 24, stop)
    ended = [stop in row for row in free]
    assert 0 < sum(ended) < len(ended)
    assert [tok.decode(row, skip_special_tokens=True) == g for row, g in zip(free, got)] == [not e for e in ended]


def lora(model, seed=0):
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1))
    for n, p in model.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(p, std=0.1)
    return model


def four_bit(model, folder):
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model.save_pretrained(folder)
    cfg = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=cfg, dtype=torch.float32)
    for m in model.modules():
        if hasattr(m, "support_avx512bf16_for_cpu"):
            m.support_avx512bf16_for_cpu = False
    return model


def test_dense_weights_of_a_qlora_model_answer_the_same_and_leave_no_trace(tok, tmp_path):
    import torch

    model = lora(four_bit(tinychat.model(tok, hidden=64), tmp_path))
    ids = {"input_ids": torch.arange(4, 20)[None], "labels": torch.arange(4, 20)[None]}

    def step():
        torch.manual_seed(1)
        model.zero_grad(set_to_none=True)
        model.train()
        loss = model(**ids).loss
        loss.backward()
        return [loss.detach()] + [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before, state = step(), torch.get_rng_state()
    with torch.no_grad():
        model.eval()
        want = model(**ids).logits
        with ev.dense(model):
            got = model(**ids).logits
            with model.disable_adapter():
                pass
        assert torch.allclose(want, got, atol=1e-4) and not torch.equal(want, torch.zeros_like(want))
        with model.disable_adapter(), ev.dense(model):
            assert torch.allclose(model(**ids).logits, model(**ids).logits)
            base = model(**ids).logits
        assert not torch.allclose(base, want, atol=1e-2)
    assert not [n for n, m in model.named_modules() if "forward" in vars(m)]
    model.train()
    threads = torch.get_num_threads()
    ev.generate(model, tok, PROMPTS, max_new_tokens=8, progress=False)
    assert model.training and torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, step())), "evaluating changed the training that follows"


def test_dense_spares_a_model_that_is_too_large(tok):
    model = lora(tinychat.model(tok))
    with ev.dense(model, limit=0):
        assert not [n for n, m in model.named_modules() if "forward" in vars(m)]


def test_generate_says_what_is_missing(tok):
    model = tinychat.model(tok)
    with pytest.raises(UserError, match="256 that this model reads"):
        ev.generate(model, tok, ["x " * 400], progress=False)
    assert ev.generate(model, tok, [], progress=False) == []
    bare = tinychat.tokenizer()
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        ev.generate(model, bare, ["x"], progress=False)


@given(st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=100, deadline=None)
def test_wilson_holds_the_rate_and_is_symmetric(a, b):
    k, n = min(a, b), max(a, b)
    lo, hi = ev.wilson(k, n)
    assert 0 <= lo <= (k / n if n else 0) <= hi <= 1
    other = ev.wilson(n - k, n)
    assert math.isclose(lo, 1 - other[1], abs_tol=1e-12)


def test_wilson_covers_as_often_as_it_says():
    rng, hit = random.Random(0), 0
    for _ in range(4000):
        p = rng.random()
        lo, hi = ev.wilson(sum(rng.random() < p for _ in range(30)), 30)
        hit += lo <= p <= hi
    assert 0.94 < hit / 4000 < 0.965


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_scoring_survives_any_answer(text):
    s = ev.score([text], ["base: x\nrank: 1"])
    assert s.n == 1 and s.fields["rank"]["n"] == 1


def test_types_of_fields_count():
    s = ev.score(["a: 1\nb: true\nc: x", "a: '1'\nb: 1\nc: x"], ["a: 1\nb: true\nc: x"] * 2)
    assert [s.fields[f]["right"] for f in "abc"] == [1, 1, 2]
    assert (s.right, s.valid) == (1, 2)


def test_report_round_trips_through_json():
    rows = [{"prompt": str(i), "completion": f"n: {i % 3}"} for i in range(30)]
    rep = ev.evaluate({"majority": ev.majority_control(rows), "echo": lambda ps: ps}, {"all": rows, "ten": rows}, limit=10)
    again = ev.Report.from_dict(json.loads(json.dumps(rep.as_dict())))
    assert again == rep and [r["n"] for r in rep.rows] == [10] * 4
    assert 0 < rep.row("majority", "all")["right"] < 10 and "of 10" in rep.table() and "of 10" in str(rep)
    assert ev.paired(again, "echo", "majority", "all").gained == rep.row("majority", "all")["right"]
    assert len({s["prompt"] for s in rep.samples}) > 2
    rep.plot().savefig(__import__("io").BytesIO(), format="png")


@pytest.mark.parametrize("kwargs, message", [
    (dict(systems={}, splits={"a": [1]}), "nothing to evaluate"),
    (dict(systems={"a": list}, splits={"t": []}), "'t' has no rows"),
    (dict(systems={"a": list}, splits={"t": [{"text": "x"}]}), "no column 'prompt'"),
    (dict(systems={"a": list}, splits={"t": [{"prompt": "x", "completion": "y"}]}, limit=0), "limit=0"),
    (dict(systems={"a": lambda p: []}, splits={"t": [{"prompt": "x", "completion": "y"}]}), "0 answers for 1"),
])
def test_bad_input_is_one_sentence(kwargs, message):
    with pytest.raises(UserError, match=message) as e:
        ev.evaluate(**kwargs)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["list", "dataset", "columns"])
def test_a_chat_model_is_asked_the_conversation_and_any_other_system_its_text(tok, kind):
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"prompt": "s\nq", "completion": "a", "messages": talk, "tools": None}, {"prompt": "", "completion": "t", "messages": talk[2:], "tools": None}]
    if kind == "dataset": rows = Dataset.from_list(rows)
    if kind == "columns": rows = {k: [r[k] for r in rows] for k in rows[0]}
    asked = {}
    def plain(prompts): asked["plain"] = list(prompts); return prompts
    chat = ev.model_system(tinychat.model(tok), tok, max_new_tokens=2, progress=False)
    def watched(prompts): asked["chat"] = list(prompts); return chat(prompts)
    watched.chats = chat.chats
    report = ev.evaluate({"plain": plain, "chat": watched}, {"test": rows})
    assert asked["plain"] == ["s\nq", ""]
    assert asked["chat"] == [{"messages": talk[:2], "tools": None}, ""]
    assert all(isinstance(s["prompt"], str) for s in report.samples)


def test_rows_of_which_only_some_are_conversations():
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"prompt": "q", "completion": "a", "messages": talk}, {"prompt": "p", "completion": "b"}, {"prompt": "r", "completion": "c", "messages": None}]
    asked = []
    def chat(prompts): asked.extend(prompts); return ["a", "b", "c"]
    chat.chats = True
    assert ev.evaluate({"chat": chat}, {"test": rows}).row("chat", "test")["right"] == 3
    assert asked == [{"messages": talk[:1], "tools": None}, "p", "r"]


# --- token F1 in the report ---------------------------------------------------------------------
def free_text():
    """Two systems without one exact answer on two splits: the second shares more words with the references."""
    rows = [{"prompt": f"say {w}", "completion": f"I say {w} to all of you"} for w in "red green blue white black grey".split()]
    near = lambda prompts: [f"{p} to you" for p in prompts]
    return ev.evaluate({"far": lambda prompts: list(prompts), "near": near}, {"s": rows, "t": [*rows[:2], {"prompt": "x", "completion": ["", "x"]}]})


def test_the_report_keeps_the_token_f1_of_every_row():
    rep = free_text()
    # say, red: both of the answer's words, of seven in the reference
    assert rep.f1 == {"far": {"s": (0.4444,) * 6, "t": (0.4444, 0.4444, 1.0)}, "near": {"s": (0.7273,) * 6, "t": (0.7273, 0.7273, 0.5)}}
    assert [r["right"] for r in rep.rows if r["split"] == "s"] == [0, 0]
    again = ev.Report.from_dict(json.loads(json.dumps(rep.as_dict())))
    assert again == rep and again.f1["near"]["t"] == (0.7273, 0.7273, 0.5)
    old = {k: v for k, v in rep.as_dict().items() if k != "f1"}
    assert ev.Report.from_dict(old).f1 == {} and ev.Report.from_dict(old).hits == rep.hits
    with pytest.raises(UserError, match="keeps no figure of each row of 's'.*evaluate again"): ev.paired_f1(ev.Report.from_dict(old), "far", "near", "s")


def test_two_systems_without_an_exact_answer_are_told_apart_by_their_words():
    rep = free_text()
    assert ev.paired(rep, "far", "near", "s").p == 1.0
    d = ev.paired_f1(rep, "far", "near", "s")
    # of 64 ways to flip six signs, two give so large a sum
    assert (d.n, d.p) == (6, 2 / 64) and d.value == pytest.approx(0.2829) and (d.f1_before, d.f1_after) == pytest.approx((0.4444, 0.7273))
    back = ev.paired_f1(rep, "near", "far", "s")
    assert (back.value, back.p) == (-d.value, d.p)
    assert ev.paired_f1(rep, "far", "far", "s").p == 1.0
    everything = ev.paired_f1(rep, "far", "near")
    assert (everything.n, everything.split) == (9, "all splits") and everything.value == pytest.approx((8 * 0.2829 - 0.5) / 9)
    with pytest.raises(UserError, match="no row for 'bert' on 't'"): ev.paired_f1(rep, "far", "bert", "t")
    with pytest.raises(UserError, match="no row for 'bert' on any split"): ev.paired_f1(rep, "far", "bert")


@pytest.mark.parametrize("n, shift", [(8, 0.1), (70, 0.02), (400, 0.0)])
def test_p_of_the_sign_flips_is_scipys(n, shift):
    import numpy as np
    from scipy.stats import permutation_test

    rng = np.random.default_rng(n)
    x = rng.random(n).round(4)
    y = np.where(rng.random(n) < 0.3, x, (x + rng.normal(shift, 0.1, n)).round(4))
    rep = ev.Report([dict(system=s, split="s", n=n, right=0) for s in "xy"], f1={"x": {"s": tuple(x.tolist())}, "y": {"s": tuple(y.tolist())}})
    want = permutation_test((x, y), lambda a, b, axis: np.mean(b - a, axis=axis), permutation_type="samples", n_resamples=20_000, rng=0)
    d = ev.paired_f1(rep, "x", "y", "s")
    assert d.value == pytest.approx(want.statistic) and d.p == pytest.approx(want.pvalue, abs=1e-9 if n == 8 else 0.015)
    assert ev.paired_f1(rep, "x", "y", "s") == d


def test_ten_thousand_rows_are_compared_in_seconds_and_little_memory():
    import time

    import numpy as np

    f1 = {s: {"s": tuple(np.random.default_rng(i).random(10_000).round(4).tolist())} for i, s in enumerate("xy")}
    rep, start = ev.Report([dict(system=s, split="s", n=10_000, right=0) for s in "xy"], f1=f1), time.process_time()
    assert 0 < ev.paired_f1(rep, "x", "y").p <= 1 and time.process_time() - start < 10


def test_all_splits_together_are_the_sum_of_the_splits():
    hits = {"a": {"s": "0011", "t": "01"}, "b": {"s": "0111", "t": "10"}}
    rep = ev.Report([dict(system=s, split=k, n=len(v), right=0) for s, d in hits.items() for k, v in d.items()], hits=hits)
    each, both = [ev.paired(rep, "a", "b", k) for k in "st"], ev.paired(rep, "a", "b")
    assert [getattr(both, k) for k in ("both", "gained", "lost", "neither")] == [2, 2, 1, 1] == [sum(getattr(e, k) for e in each) for k in ("both", "gained", "lost", "neither")]
    assert both.split == "all splits" and both.p == 1.0 and "all splits: **a**" in both._repr_markdown_()
    with pytest.raises(UserError, match="no row for 'c' on any split: it has 'a' on 's'"): ev.paired(rep, "a", "c")


def test_a_report_says_which_system_is_which():
    rows = [dict(prompt=str(i), completion="y") for i in range(4)]
    systems = {"Before": lambda p: ["n"] * len(p), "mine": lambda p: ["y"] * len(p), "after": lambda p: ["y"] * len(p)}
    told = ev.evaluate(systems, {"s": rows}, roles=dict(base="Before", tuned="mine"))
    assert (told.role("base"), told.role("tuned")) == ("Before", "mine")
    assert ev.Report.from_dict(json.loads(json.dumps(told.as_dict()))) == told
    old = {k: v for k, v in told.as_dict().items() if k != "roles"}          # as an older version wrote it
    assert (ev.Report.from_dict(old).role("base"), ev.Report.from_dict(old).role("tuned")) == ("Before", "after")
    assert ev.Report([r for r in told.rows if r["system"] == "mine"]).role("tuned") is None
    with pytest.raises(UserError, match="role of 'other'"): ev.evaluate(systems, {"s": rows}, roles=dict(base="other"))
