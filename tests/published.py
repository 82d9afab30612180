"""A small published model that answers three requests by heart: for tests of what happens after training."""
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import tinychat

PAIRS = {
    "tune qwen with rank 16": "base: qwen\nrank: 16",
    "llama, three epochs please": "base: llama\nepochs: 3",
    "gemma in 4 bits": "base: gemma\nbits: 4",
}


def base(repo_id):
    """Put a random base with its tokenizer on the Hub."""
    from hfflow import publish

    folder = Path(tempfile.mkdtemp())
    tok = tinychat.tokenizer(tuple(PAIRS) + tuple(PAIRS.values()))
    tinychat.model(tok, hidden=64).save_pretrained(folder)
    tok.save_pretrained(folder)
    return publish.commit("model", repo_id, {p.name: p for p in folder.iterdir()}, "Add a base")


def dataset(repo_id):
    from hfflow import publish

    rows = "".join(json.dumps(dict(prompt=p, completion=c)) + "\n" for p, c in PAIRS.items())
    card = "---\nlicense: apache-2.0\n---\n# Rows\n"
    files = {"train.jsonl": rows.encode(), "README.md": card.encode()}
    note, _ = publish.trace("dataset", repo_id, {"train.jsonl": files["train.jsonl"]}, [], {"seed": 0})
    return publish.commit("dataset", repo_id, publish.sealed(files, note), "Add rows")


def run(base_artifact, folder, steps=150):
    """Train an adapter until it knows PAIRS by heart; return its folder as a run."""
    import torch
    from hfflow import qlora, tokens

    tok = qlora.load_tokenizer(base_artifact)
    net = qlora.add_lora(qlora.load_base(base_artifact, bits=32), qlora.QloraConfig(rank=16, bits=32))
    batch = tokens.collate([tokens.encode(dict(prompt=p, completion=c), tok) for p, c in PAIRS.items()], tok.pad_token_id)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    net.train()
    for _ in range(steps):
        loss = net(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 2e-3:
            break
    assert loss < 0.1, f"the test's own model did not learn: loss {loss:.3f}"
    qlora.save_adapter(net.eval(), tok, Path(folder) / "adapter")
    return Path(folder)


def report():
    """What an evaluation would say of a model that knows PAIRS by heart, and of its base."""
    rows, samples = [], []
    for system, right in (("base", 0), ("fine-tuned", 3)):
        field = dict(right=right, n=3, exact=right / 3, lo=0.0, hi=1.0)
        rows.append(dict(system=system, split="test", fields={"base": field}, valid=right, seconds=1.0, **field))
    for p, c in PAIRS.items():
        samples.append(dict(system="fine-tuned", split="test", prompt=p, reference=c, answer=c, right=True))
    return dict(rows=rows, samples=samples, hits={})


SETTINGS = dict(lora=dict(rank=16, bits=32), train=dict(lr=1e-2))


def make(owner, folder):
    """Base, data, run and model, all on the Hub that is connected."""
    from hfflow import publish

    made = SimpleNamespace(base=base(f"{owner}/base"), data=dataset(f"{owner}/rows"), report=report(), config=SETTINGS)
    made.run = run(made.base, folder)
    made.push = lambda repo_id, **kw: publish.push(made.run, repo_id, made.base, made.data,
                                                   **{**dict(report=made.report, config=SETTINGS, merged=False), **kw})
    made.model = made.push(f"{owner}/model")
    return made
