"""Chat templates of several families, the tokens that carry loss, and the batches made of them."""
import json

import pytest
import tinychat

from hfflow.hub import UserError
from hfflow.tokens import DEFAULT_TEMPLATE, collate, encode, encode_dataset, length_batches, messages, pack, prepare_tokenizer, prompt_text, show, stop_ids

# The turns as Qwen, Llama 3 and Gemma write them: what follows the end of a turn, and where a start token comes from, differ.
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA3 = ("{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
          " + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
GEMMA = ("{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
         "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}{{ '<start_of_turn>' + role + '\n' + m['content'] | trim"
         " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
THINKS = ("{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}"
          "{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "one"}, {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "two"}]
ROW = {"prompt": "tune qwen", "completion": "base: qwen\nbits: 4"}


def tokenizer(template=None, specials=(), **kw):
    tok = tinychat.tokenizer()
    tok.add_special_tokens({"additional_special_tokens": list(specials), **kw})
    if template: tok.chat_template = template
    return prepare_tokenizer(tok)


TEMPLATES = {
    "own": (None, (), {}, "<|endoftext|>"),
    "default": (DEFAULT_TEMPLATE, (), {}, "<|endoftext|>"),
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>"), {}, "<|im_end|>"),
    "llama3": (LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), {"bos_token": "<|begin|>"}, "<|eot_id|>"),
    "gemma": (GEMMA, ("<start_of_turn>", "<end_of_turn>"), {"bos_token": "<bos>"}, "<end_of_turn>"),
}


def learned(row, tok): return tok.decode([t for t in row["labels"] if t != -100])


def runs(row, tok):
    "The learned stretches of a row, as texts."
    out, before = [], -100
    for t in row["labels"]:
        if t != -100 and before == -100: out.append([])
        if t != -100: out[-1].append(t)
        before = t
    return [tok.decode(ids) for ids in out]


@pytest.mark.parametrize("name", TEMPLATES)
def test_loss_is_on_the_answer_and_its_end(name):
    template, specials, kw, end = TEMPLATES[name]
    tok = tokenizer(template, specials, **kw)
    row = encode(ROW, tok)
    assert learned(row, tok) == ROW["completion"] + end
    assert tok.convert_tokens_to_ids(end) in stop_ids(tok)
    n = sum(t == -100 for t in row["labels"])        # training and generation must read the same prompt
    assert row["input_ids"][:n] == tok(prompt_text(ROW["prompt"], tok), add_special_tokens=False)["input_ids"]
    assert n + sum(t != -100 for t in row["labels"]) == len(row["input_ids"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_of_a_conversation_is_learned(name):
    template, specials, kw, end = TEMPLATES[name]
    tok = tokenizer(template, specials, **kw)
    assert learned(encode({"messages": TALK}, tok), tok) == f"one{end}two{end}"


# Thoughts are written into the last answer alone, even empty ones (as in Qwen3); a tool's answer keeps those since the last question.
LATEST = ("{% set ns = namespace(q=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.q = loop.index0 %}{% endif %}{% endfor %}"
          "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
          "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.index0 > ns.q %}"
          "{{ '<think>\n' + (m['reasoning_content'] or '') + '\n</think>\n\n' }}{% endif %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}"
          "{% for c in m['tool_calls'] %}{{ '<call>' + c['function']['name'] + (c['function']['arguments'] | tojson) + '</call>' }}{% endfor %}"
          "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
# An answer ends in one token where the conversation ends, and in another one before that (as in gpt-oss).
ENDS = ("{% for m in messages %}{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] }}{{ '<|return|>' if loop.last and m['role'] == 'assistant' "
        "else '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}")
# No token ends an answer: the next question does (as in GLM).
NEXT = ("{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
IM = ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize("template, specials, want", [
    (THINKS, IM, ["one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>"]),
    (LATEST, IM, ["one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>"]),
    (ENDS, ("<|start|>", "<|message|>", "<|end|>", "<|return|>"), ["<|message|>one", "<|message|>two<|return|>"]),
    (NEXT, (), ["one", "two<|endoftext|>"]),
], ids=["thinks", "latest", "ends", "next"])
def test_earlier_answers_are_learned_as_the_template_writes_them(template, specials, want):
    tok = tokenizer(template, specials)
    assert runs(encode({"messages": TALK}, tok), tok) == want
    thoughts = [m | {"content": "<think>hm</think>" + m["content"]} if m["role"] == "assistant" else m for m in TALK]
    row = encode({"messages": thoughts}, tok)
    assert "one" in runs(row, tok)[0] and "two" in runs(row, tok)[1] and len(runs(row, tok)) == 2
    assert all(said not in learned(row, tok) for said in ("Hi", "and?", "user"))


CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "id": "1", "function": {
    "name": "rain", "arguments": '{"city": "Rome"}'}}]}
TOOL_TALK = [{"role": "user", "content": "Rain?", "tool_calls": None}, CALL, {"role": "tool", "content": "no", "tool_call_id": "1"},
             {"role": "assistant", "content": "It is dry", "tool_calls": []}]


@pytest.mark.parametrize("written", [dict, json.dumps])
def test_a_call_of_a_tool_is_learned_and_its_answer_is_not(written):
    tok = tokenizer(LATEST, IM)
    call = CALL | {"tool_calls": [{"type": "function", "function": {"name": "rain", "arguments": written({"city": "Rome", **({"day": None} if
                                                                                                            written is dict else {})})}}]}
    tools = [{"type": "function", "function": {"name": "rain", "parameters": {"a": None, "b": 1}}}]
    for shape in (tools, json.dumps(tools)):
        row = encode({"messages": [TOOL_TALK[0], call, *TOOL_TALK[2:]], "tools": shape}, tok)
        assert runs(row, tok) == ['<think>\n\n</think>\n\n<call>rain{"city": "Rome"}</call><|im_end|>', "<think>\n\n</think>\n\nIt is dry<|im_end|>"]
        assert '"b": 1' in tok.decode(row["input_ids"]) and '"a"' not in tok.decode(row["input_ids"])
    # before a later question the thoughts go, and the tool's answer is still not learned
    longer = encode({"messages": [*TOOL_TALK, *TALK[:2]]}, tok)
    assert runs(longer, tok) == ['<call>rain{"city": "Rome"}</call><|im_end|>', "It is dry<|im_end|>", "<think>\n\n</think>\n\none<|im_end|>"]


def test_arguments_as_text_for_a_template_that_wants_them():
    tok = tokenizer("{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% for c in m['tool_calls'] %}{{ c['function']['name'] + ':' "
                    "+ c['function']['arguments'] }}{% endfor %}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
                    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}", ("<|tool|>",))
    assert runs(encode({"messages": TOOL_TALK}, tok), tok) == ['rain:{"city": "Rome"}<|endoftext|>', "It is dry<|endoftext|>"]


def test_what_a_template_would_lose_is_refused():
    tok = tokenizer()
    with pytest.raises(UserError, match="calls the tool 'rain'.*writes no calls"): encode({"messages": TOOL_TALK}, tok)
    with pytest.raises(UserError, match="part of type image_url"):
        encode({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, tok)
    with pytest.raises(UserError, match="needs a role"): encode({"messages": [{"content": "x"}]}, tok)
    tok.chat_template = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    with pytest.raises(UserError, match="lists of parts"): encode(ROW, tok)
    tok.chat_template = GEMMA
    tok.chat_template = ("{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" + GEMMA)
    with pytest.raises(UserError, match="roles assistant, user, assistant.*user first"): encode({"messages": TALK[1:]}, tok)


def test_what_files_of_others_hold():
    tok = tokenizer(CHATML, IM)
    want = encode({"messages": TALK}, tok)
    parts = [m | {"content": [{"type": "text", "text": m["content"]}], "name": None} for m in TALK]
    assert encode({"messages": parts}, tok) == want
    assert encode({"prompt": TALK[:1], "completion": TALK[1:]}, tok) == want
    assert runs(encode({"prompt": "how many?", "completion": 7}, tok), tok) == ["7<|im_end|>"]
    asks = [{"role": "developer", "content": "s"}, *TALK[:2]]
    assert encode({"messages": asks}, tok) == encode({"messages": [{"role": "system", "content": "s"}, *TALK[:2]]}, tok)
    # of a prompt in messages nothing is learned; nor is an answer that weighs nothing
    only = runs(encode({"prompt": TALK[:3], "completion": TALK[3:]}, tok), tok)
    assert only == ["two<|im_end|>"] == runs(encode({"messages": [TALK[0], TALK[1] | {"weight": 0}, *TALK[2:]]}, tok), tok)
    # a conversation that begins with an answer: its header is not learned
    assert runs(encode({"messages": TALK[1:]}, tok), tok) == ["one<|im_end|>", "two<|im_end|>"]


def test_a_system_prompt_that_a_template_does_not_take_goes_into_the_question():
    deaf = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    for template, specials, kw in ((TEMPLATES["gemma"][:3]), (deaf, IM, {})):
        tok = tokenizer(template, specials, **kw)
        row = encode({**ROW, "system": "Answer in YAML"}, tok)
        assert "Answer in YAML\n\ntune qwen" in tok.decode(row["input_ids"])
        asked = prompt_text([{"role": "system", "content": "Answer in YAML"}, {"role": "user", "content": ROW["prompt"]}], tok)
        n = sum(t == -100 for t in row["labels"])
        assert row["input_ids"][:n] == tok(asked, add_special_tokens=False)["input_ids"]


def test_system_prompt_is_read_and_not_learned():
    tok = tokenizer(CHATML, ("<|im_start|>", "<|im_end|>"))
    row = encode({**ROW, "system": "Answer in YAML"}, tok)
    assert "Answer in YAML" in tok.decode(row["input_ids"]) and learned(row, tok) == ROW["completion"] + "<|im_end|>"


def test_end_token_is_learned_even_where_it_is_the_padding_token():
    tok = tinychat.tokenizer()
    tok.pad_token = None
    tok.chat_template = tok.chat_template.replace("eos_token", "''")      # a template that forgets the end
    without = [t for t in tok.get_vocab() if "pad" in t]
    tok.pad_token = tok.eos_token
    prepare_tokenizer(tok)
    assert without and tok.pad_token == tok.eos_token
    rows = [encode(ROW, tok), encode({"prompt": "a", "completion": "b"}, tok)]
    batch = collate(rows, tok.pad_token_id)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        assert row["labels"][-1] == tok.eos_token_id == batch["labels"][i, n - 1]
        assert (batch["labels"][i, n:] == -100).all() and batch["attention_mask"][i].sum() == n


def test_prepare_fills_what_is_missing():
    tok = tinychat.tokenizer()
    tok.pad_token = tok.chat_template = tok.eos_token = None
    prepare_tokenizer(tok)
    assert (tok.pad_token, tok.eos_token) == ("<|pad|>", "<|endoftext|>") and tok.chat_template == DEFAULT_TEMPLATE


def test_no_end_token_is_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    with pytest.raises(UserError, match="no end token"):
        prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[U]": 1}, unk_token="[U]"))))


def test_text_rows_are_learned_whole():
    tok = tokenizer()
    assert learned(encode({"text": "all of it"}, tok), tok) == "all of it<|endoftext|>"
    assert messages({"text": "x"}) == [{"role": "assistant", "content": "x"}]


def test_truncation_keeps_whole_answers_or_drops_the_row():
    tok = tokenizer()
    full = encode(ROW, tok)
    n = len(full["input_ids"])
    assert encode(ROW, tok, n) == full and encode(ROW, tok, n - 1) is None
    rows, stats = encode_dataset([ROW, {"prompt": "a", "completion": "b"}], tok, n - 1)
    assert (len(rows), stats.dropped, stats.rows, stats.cut) == (1, 1, 2, 0)


def test_truncation_takes_whole_turns_off_a_conversation():
    tok = tokenizer()
    talk = {"messages": TALK + [{"role": "user", "content": "go on"}, {"role": "assistant", "content": "three " * 30}]}
    n = len(encode({"messages": TALK}, tok)["input_ids"])
    for room in (n, n + 20):
        cut = encode(talk, tok, room)
        assert cut["input_ids"][-1] == tok.eos_token_id and learned(cut, tok) == "one<|endoftext|>two<|endoftext|>"
    assert encode_dataset([talk], tok, n + 20)[1].cut == 1
    for room in range(1, n): assert (cut := encode(talk, tok, room)) is None or cut["labels"][-1] == tok.eos_token_id and len(cut["labels"]) <= room


def test_truncation_cuts_a_plain_text():
    tok = tokenizer()
    rows, stats = encode_dataset([{"text": "word " * 50}], tok, 20)
    assert len(rows[0]["input_ids"]) == 20 and stats.cut == 1 and tok.eos_token_id not in rows[0]["labels"]


def test_refusals_name_the_way_out():
    tok = tokenizer()
    for rows, words in (([], "empty"), ([{"messages": TALK[:1]}], "none has an answer"), ([{"prompt": "x" * 90, "completion": "y"}], "max_len=8")):
        with pytest.raises(UserError, match=words): encode_dataset(rows, tok, 8 if "max" in words else None)
    with pytest.raises(UserError, match="question, answer"): encode({"question": "a", "answer": "b"}, tok)


def test_stats_count_what_is_there():
    tok = tokenizer()
    rows, stats = encode_dataset([ROW] * 3, tok)
    assert stats.tokens == 3 * len(rows[0]["input_ids"]) and stats.label_tokens == 3 * sum(t != -100 for t in rows[0]["labels"])
    assert "3 rows, 0 dropped" in stats._repr_markdown_() and 0 < stats.share < 1


def test_batches_hold_every_row_once_and_little_padding():
    import random
    rng = random.Random(1)
    lengths = [int(rng.lognormvariate(4, .6)) + 1 for _ in range(1003)]
    batches = length_batches(lengths, 16, seed=3, epoch=1)
    assert sorted(i for b in batches for i in b) == list(range(1003)) and max(map(len, batches)) == 16
    assert batches == length_batches(lengths, 16, seed=3, epoch=1) != length_batches(lengths, 16, seed=3, epoch=2)
    waste = lambda bs: sum(max(lengths[i] for i in b) * len(b) for b in bs) / sum(lengths)
    order = list(range(1003))
    assert waste(batches) < 1.1 < waste([order[i:i+16] for i in range(0, 1003, 16)])
    first = [max(lengths[i] for i in b) for b in batches]
    assert first != sorted(first)                    # short and long batches alternate


def test_show_escapes_and_marks(monkeypatch, capsys):
    import IPython
    tok, row, seen = tokenizer(), {"prompt": "<b>", "completion": "a & b\n"}, []
    monkeypatch.delenv("NO_COLOR", raising=False)
    show(row, tok)
    assert "\033[42" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    show(encode(row, tok), tok)
    assert "[<|endoftext|>]" in (out := capsys.readouterr().out) and "\033" not in out
    monkeypatch.setattr(IPython, "get_ipython", lambda: "a notebook")
    monkeypatch.setattr("IPython.display.display", seen.append)
    show(row, tok)
    page = seen[0]._repr_html_()
    assert "<b>" not in page and "&lt;" in page and "&amp;" in page and page.count("#4c956c") >= 2 and page.count("<br>") == 2
    with pytest.raises(UserError, match="no answer to learn from"): show({"messages": TALK[:1]}, tok)


def test_pack_lays_rows_side_by_side():
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]
    batch = pack(rows)
    assert batch["input_ids"].tolist() == [[8, 9, 5, 6, 7]] and batch["labels"].tolist() == [[-100, 9, -100, 6, 7]]     # no label across a border
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]] and batch["cu_seq_lens_q"].tolist() == [0, 2, 5] and batch["max_length_q"] == 3
    assert "attention_mask" not in batch
