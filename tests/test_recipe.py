"""Settings that suit a base: its own wishes, the usual rates, what a file leaves open, and the warning of a rate that is far off."""
import json
from dataclasses import replace

import pytest
import tinychat
from hfflow import flow, hub as hubs, plan, qlora, train
from hfflow.engine import recipe
from hfflow.hub import Artifact, UserError


@pytest.fixture(scope="module")
def hub(): return hubs.connect()


def wishing(hub, name, **wishes):
    "A small chat model on the Hub whose repo says what it wants."
    repo = tinychat.publish(name)
    hub.api.upload_file(path_or_fileobj=json.dumps(wishes).encode(), path_in_repo=recipe.FILE, repo_id=repo)
    return Artifact.at("model", repo)


def test_every_rate_falls_with_size_and_a_tenth_trains_all_weights():
    for task in ("classify", "causal", "seq2seq"):
        rates = [recipe.usual_lr(task, n)[0] for n in (1e6, 2e7, 1e8, 5e8, 3e9, 7e10)]
        assert rates == sorted(rates, reverse=True) and all(1e-5 < r < 1e-2 for r in rates)
        for n in (1e6, 5e8, 7e10):
            lr, why = recipe.usual_lr(task, n)
            assert recipe.usual_lr(task, n, full=True)[0] == pytest.approx(lr / 10) and why


def test_the_shipped_base_keeps_what_it_had(hub):
    "The default flow trains as before its settings moved into the base's repo."
    cfg = flow.settle(flow.load({"preset": "cpu"}), Artifact.at("model", "hfflow/tiny-llama"))
    assert (cfg.train.lr, cfg.train.beta2, cfg.train.batch, cfg.train.accumulation, cfg.rank, cfg.lora.rank, cfg.minutes, cfg.epochs) == (4e-3, .98, 8, 1, 32, 32, 1.8, 3)
    assert cfg.left_open == () and flow.settle(cfg, "you/none") == cfg


def test_a_wish_fills_what_is_open_and_nothing_else(hub):
    base = wishing(hub, "wishing", lr=7e-3, batch=6, rank=5, minutes=2.5, max_len=64, source="tried")
    cfg = flow.settle(flow.load({"preset": "t4"}), base)
    assert (cfg.train.lr, cfg.train.batch, cfg.train.accumulation, cfg.rank, cfg.lora.rank, cfg.minutes, cfg.train.max_len) == (7e-3, 6, 1, 5, 5, 2.5, 64)
    named = {"preset": "t4", "rank": 9, "epochs": 2, "train": {"lr": 1e-3, "accumulation": 3, "max_len": 100}}
    cfg = flow.settle(flow.load(named), base)
    assert (cfg.train.lr, cfg.train.batch, cfg.train.accumulation, cfg.rank, cfg.minutes, cfg.epochs, cfg.train.max_len) == (1e-3, 8, 3, 9, None, 2, 100)
    own = flow.FlowConfig(train=train.TrainConfig(lr=2e-3, batch=3))
    assert flow.settle(own, base) == own and flow.settle(replace(own, train=train.TrainConfig(batch=3)), base).train.lr == 7e-3


@pytest.mark.parametrize("text, says", [("{", "is no JSON"), ("[1]", "holds no settings"), ('{"lr": 2}', "between 1e-08 and 1"), ('{"lr": "fast"}', "a number"),
                                        ('{"batch": 2.5}', "a whole number"), ('{"rates": 1}', "has 'rates'"), ('{"epochs": true}', "a whole number")])
def test_wishes_that_nobody_can_grant(hub, tmp_path, text, says):
    (tmp_path / recipe.FILE).write_text(text)
    with pytest.raises(UserError, match=says) as e: recipe.wishes(tmp_path)
    assert recipe.FILE in str(e.value) and "\n" not in str(e.value)


def test_a_base_without_wishes(hub, tmp_path):
    repo = tinychat.publish("wishless")
    assert recipe.wishes(Artifact.at("model", repo)) == recipe.wishes(repo) == recipe.wishes(tmp_path) == recipe.wishes("nobody/nothing") == {}
    cfg = flow.settle(flow.load({"preset": "cpu"}), repo)
    assert cfg.train.lr == recipe.usual_lr("causal", 1e5)[0] and (cfg.minutes, cfg.epochs) == (None, 3)


def test_a_loop_without_a_rate_takes_the_usual_one(hub, tmp_path):
    base = tinychat.publish("no-rate")
    tok, rows = qlora.load_tokenizer(base), [{"prompt": f"say {i}", "completion": str(i)} for i in range(8)]
    for full, want in ((False, recipe.usual_lr("causal", 1e5)[0]), (True, recipe.usual_lr("causal", 1e5, True)[0])):
        model = qlora.add_lora(qlora.load_base(base, bits=32), qlora.QloraConfig(rank=4, bits=32, full=full))
        train.fit(model, tok, rows, train.TrainConfig(max_steps=2, batch=4, warmup=0, schedule="constant"), tmp_path / str(full), progress=False)
        lines = [json.loads(l) for l in (tmp_path / str(full) / "log.jsonl").read_text().splitlines()]
        assert [l["lr"] for l in lines if "lr" in l] == [want, want]


def test_the_plan_warns_of_a_rate_that_is_far_off_and_of_hours(hub):
    usual = recipe.recipe("hfflow/tiny-llama", "causal", 3e6).lr
    said = lambda lr, **kw: plan.plan("hfflow/tiny-llama", rows=40, train=train.TrainConfig(lr=lr, max_len=64, **kw)).warnings
    assert said(usual) == said(None) == []
    for lr, word in ((usual * 20, "20 times the usual"), (usual / 100, "one 100th of the usual")):
        [text] = said(lr)
        assert word in text and f"set train: {{lr: {usual:g}}}" in text and "\n" not in text
    [long] = said(usual, max_steps=10**8)
    assert "minutes: 30" in long


def test_what_is_open_can_be_read_back_and_must_be_known():
    cfg = flow.load({"preset": "cpu", "rank": 8})
    assert "rank" not in cfg.left_open and "lr" in cfg.left_open and flow.load(cfg.as_dict()) == cfg
    with pytest.raises(UserError, match="left_open"): flow.load({"left_open": ["colour"]})
