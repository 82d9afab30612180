"""Which answers of a conversation carry loss, in the chat templates of real models?

    python benchmarks/templates.py [--json FILE]       (needs trl, which brings those templates)

TRL keeps the templates of some forty models as their makers publish them, and beside most of them one that its authors rewrote by hand with
{% generation %} marks. Each conversation below is encoded three times: by hfflow with the published template; by transformers' own mask with the
published template; and by that mask with the rewritten one. An answer counts as learned where what it says, its call or its last words, stands within the
labelled tokens. `ours` and `peer` (TRL's rewritten template) are such answers, of as many as the templates can write; `stock` is what the published
template marks by itself; `asked` counts words of users, systems and tools that carry loss in hfflow's labels, which must be 0. A template that refuses a
conversation, or that writes no calls or no system prompts, is not asked for them by either side.
"""
import argparse
import json
import logging
import re
from importlib.util import find_spec
from pathlib import Path

import train as bench

CALL = [{"type": "function", "function": {"name": "rainfall", "arguments": {"city": "Rome"}}}]
TOOLS = [{"type": "function", "function": {"name": "rainfall", "description": "how much rain", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}]


def said(*turns): return [{"role": role, "content": text, **(more[0] if more else {})} for role, text, *more in turns]


CONVERSATIONS = {   # what is asked is written in capitals, so that it can be told from what is answered
    "one answer": said(("user", "FIRST"), ("assistant", "hello")),
    "system": said(("system", "BRIEF"), ("user", "FIRST"), ("assistant", "hello")),
    "three answers": said(("user", "FIRST"), ("assistant", "hello"), ("user", "SECOND"), ("assistant", "it goes on"), ("user", "THIRD"),
                          ("assistant", "goodbye")),
    "thoughts": said(("user", "FIRST"), ("assistant", "hello", {"reasoning_content": "hmm"}), ("user", "SECOND"),
                     ("assistant", "goodbye", {"reasoning_content": "well"})),
    "tools": said(("user", "FIRST"), ("assistant", "", {"tool_calls": CALL}), ("tool", "NONE", {"name": "rainfall"}), ("assistant", "dry"),
                  ("user", "SECOND"), ("assistant", "goodbye")),
}
ASKED = re.compile(r"BRIEF|FIRST|SECOND|THIRD|NONE")
SPECIAL = re.compile(r"<\|[^|<>\s]+\|>|<[a-z_]+_of_[a-z_]+>|<｜[^｜]+｜>|<\|?/?(?:think|tool_call|tool_response|turn|channel)\|?>")
ENDS = ("<|return|>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<turn|>", "<|end|>", "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>")


def tokenizer(template):
    "A byte-level tokenizer that knows the special tokens of a template."
    from hfflow.engine.base import train_tokenizer, wrap_tokenizer
    tok = wrap_tokenizer(train_tokenizer(["a"], 300))
    special = sorted(set(SPECIAL.findall(template)))
    tok.add_special_tokens({"additional_special_tokens": special, "bos_token": "<s>"})
    tok.model_max_length = 10**6
    tok.eos_token = next((e for e in ENDS if e in special), tok.eos_token)
    return tok


def labelled(tok, ids, marks): return "".join(tok.decode([i]) if m else "\0" for i, m in zip(ids, marks))


def masked(tok, template, talk, tools):
    "What transformers' own mask marks; None where the template refuses the conversation."
    tok.chat_template = template
    try: out = tok.apply_chat_template(talk, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    except Exception: return None     # a template may raise whatever it likes
    return labelled(tok, out["input_ids"], out["assistant_masks"])


def counted(text, talk):
    answers = [(m["content"] or "rainfall") for m in talk if m["role"] == "assistant"]
    return sum(a in text for a in answers), len(answers)


def compare(stock, rewritten):
    "(ours, TRL's, stock's, all) answers and words asked that are learned, over the conversations that both templates write."
    from hfflow.hub import UserError
    from hfflow.tokens import encode, prepare_tokenizer
    tok, total = prepare_tokenizer(tokenizer(stock)), [0] * 5
    for name, talk in CONVERSATIONS.items():
        tools = TOOLS if name == "tools" else None
        theirs, plain = masked(tok, rewritten, talk, tools), masked(tok, stock, talk, tools)
        tok.chat_template = stock
        try: row = encode({"messages": talk, "tools": tools}, tok)
        except UserError: row = None
        if theirs is None or row is None: continue
        ours = labelled(tok, row["input_ids"], [l != -100 for l in row["labels"]])
        found = counted(ours, talk)
        total = [a + b for a, b in zip(total, (found[0], counted(theirs, talk)[0], counted(plain or "", talk)[0], found[1], len(ASKED.findall(ours))))]
    return total


def main():
    p = argparse.ArgumentParser(description="Which answers carry loss, in the chat templates of real models?")
    p.add_argument("--json", metavar="FILE", help="also write the rows to this file, each with date, machine and versions")
    args = p.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if find_spec("trl") is None: raise SystemExit("The templates come with TRL, which is not installed: pip install trl.")
    folder, rows = Path(find_spec("trl").submodule_search_locations[0]) / "chat_templates", []
    at_hand = bench.facts(None)
    print(f"{'template':24}{'answers':>9}{'hfflow':>9}{'TRL':>9}{'own mask':>10}{'asked':>7}")
    for file in sorted(folder.glob("*_training.jinja")):
        stock = file.with_name(file.name.replace("_training", ""))
        ours, peer, plain, all_, asked = compare(stock.read_text(), file.read_text())
        if not all_: continue
        rows.append({"case": stock.stem, "ours": ours, "peer": peer, "peer_name": "TRL, rewritten template", "ratio": round(ours / peer, 3), "unit": "answers",
                     "all": all_, "stock": plain, "asked": asked})
        print(f"{stock.stem:24}{all_:9}{ours:9}{peer:9}{plain:10}{asked:7}")
    print(f"{'all':24}" + "".join(f"{sum(r[k] for r in rows):{w}}" for k, w in (("all", 9), ("ours", 9), ("peer", 9), ("stock", 10), ("asked", 7))))
    if args.json: Path(args.json).write_text(json.dumps([r | at_hand for r in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__": main()
