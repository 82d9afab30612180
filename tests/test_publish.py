"""Publishing: one commit of safetensors with a card that the Hub accepts, refusals that leave nothing behind, verify and lineage."""
import contextlib
import io
import json
import logging
import pickle
import re
import shutil

import published
import pytest
from hfflow import publish
from hfflow.engine import card, commits, files
from hfflow.hub import Artifact, UserError, connect
from hfflow.lineage import lineage as found_lineage


@pytest.fixture(scope="module")
def hub():
    return connect()


@pytest.fixture(scope="module")
def made(hub, tmp_path_factory):
    return published.make(hub.user, tmp_path_factory.mktemp("run"))


def read(artifact, name):
    from huggingface_hub import hf_hub_download

    with open(hf_hub_download(artifact.repo_id, name, repo_type=artifact.kind, revision=artifact.revision), encoding="utf-8") as f:
        return f.read()


# --- the commit ---------------------------------------------------------------------------------
def test_one_commit_holds_everything(hub, made):
    titles = [c.title for c in hub.api.list_repo_commits(made.model.repo_id)]
    assert titles == ["Publish the model", "initial commit"]
    names = set(hub.api.list_repo_files(made.model.repo_id))
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md", "lineage.json", "generation_config.json"} <= names


def test_adapter_names_its_base_by_commit(made):
    cfg = json.loads(read(made.model, "adapter_config.json"))
    assert (cfg["base_model_name_or_path"], cfg["revision"]) == (made.base.repo_id, made.base.revision)


def test_no_path_of_this_machine_is_published(hub, made):
    for name in hub.api.list_repo_files(made.model.repo_id):
        if not name.endswith((".safetensors", ".png")):
            text = read(made.model, name)
            assert str(made.run) not in text and not re.search(r'"/(tmp|home|root|work)', text), name


def test_same_run_again_makes_no_commit(hub, made):
    assert made.push(made.model.repo_id) == made.model
    assert len(hub.api.list_repo_commits(made.model.repo_id)) == 2
    assert [b.name for b in hub.api.list_repo_refs(made.model.repo_id).branches] == ["main"]


def test_a_commit_that_would_be_empty_is_no_reason_to_warn(hub):
    log, heard = logging.getLogger("huggingface_hub.hf_api"), []
    class Ear(logging.Handler):
        def emit(self, record): heard.append(record.getMessage())
    ear = Ear(logging.WARNING)
    log.addHandler(ear)
    try:
        first = publish.commit("model", f"{hub.user}/twice", {"notes.txt": b"one"}, "Notes")
        assert publish.commit("model", f"{hub.user}/twice", {"notes.txt": b"one"}, "Notes", remove=["gone.txt"]) == first
        assert not heard and log.level == logging.NOTSET
    finally: log.removeHandler(ear)


def test_large_files_that_are_there_are_not_sent_again(hub):
    "Also files that the Hub keeps outside of git, which have another hash."
    import numpy as np
    from safetensors.numpy import save

    files = {"model.safetensors": save({"w": np.zeros(1000, "float32")}), "notes.txt": b"one"}
    first = publish.commit("model", f"{hub.user}/large", files, "Weights")
    assert hub.api.get_paths_info(first.repo_id, "model.safetensors")[0].lfs is not None
    assert publish.commit("model", f"{hub.user}/large", files, "Weights") == first
    second = publish.commit("model", f"{hub.user}/large", files | {"notes.txt": b"two"}, "Notes", remove=["model.safetensors"])
    assert set(hub.api.list_repo_files(second.repo_id)) == {".gitattributes", "model.safetensors", "notes.txt"}


# --- one small file -----------------------------------------------------------------------------
def test_a_file_is_found_by_artifact_by_name_and_in_a_folder(made):
    model = made.model
    for where, more in ((model, {}), (model.repo_id, {}), (model.repo_id, dict(revision=model.revision)), (made.run / "adapter", {}), (str(made.run / "adapter"), {})):
        assert files.read_json(files.file_of(where, "adapter_config.json", **more))["r"] == 16
        assert files.file_of(where, "nothing.json", **more) is None
    assert files.file_of(made.data.repo_id, "train.jsonl", kind="dataset") == files.file_of(made.data, "train.jsonl")
    assert files.sha256(made.run / "adapter/adapter_config.json") == files.sha256((made.run / "adapter/adapter_config.json").read_bytes())


@pytest.mark.parametrize("where, name, more, says", [
    ("{id}", "nothing.json", dict(needed=True), "has no file nothing.json"), ("{run}", "nothing.json", dict(needed=True), "has no file nothing.json"),
    ("{id}", "README.md", dict(revision="v9"), "no revision 'v9'"), ("nobody/nothing", "README.md", {}, "was not found"), ("a b/c d", "README.md", {}, "was not found")])
def test_what_is_missing_is_said(made, where, name, more, says):
    with pytest.raises(UserError, match=says):
        files.file_of(where.format(id=made.model.repo_id, run=made.run), name, **more)
    if not more.get("needed"): assert files.read_note("model", where.format(id=made.model.repo_id), more.get("revision", "main"), name) is None


def test_new_figures_make_one_commit_and_keep_weights(hub, made):
    repo = f"{hub.user}/figures"
    first = made.push(repo)
    worse = json.loads(json.dumps(made.report))
    worse["rows"][1].update(right=2, exact=2 / 3)
    second = made.push(repo, report=worse)
    changed = [n for n in hub.api.list_repo_files(repo) if n != ".gitattributes" and "safetensors" not in n and read(first, n) != read(second, n)]
    assert set(changed) == {"README.md", "evaluation.json", "lineage.json", ".eval_results/rows.yaml"}
    assert len(hub.api.list_repo_commits(repo)) == 3
    assert {t.target_commit for t in hub.api.list_repo_refs(repo).tags} == {first.revision, second.revision}


def test_results_stand_where_the_hub_reads_them(hub, made):
    """In `.eval_results/`, in the card's metadata and in its text, by the Hub's own parsers, with every metric that was asked for."""
    import yaml
    from huggingface_hub import ModelCard, parse_eval_result_entries

    report = json.loads(json.dumps(made.report))
    for row in report["rows"]:
        row["metrics"] = {"chrf": dict(name="chrf", title="chrF", value=41.26, lo=30.0, hi=55.5, n=3, low=0.0, high=100.0)}
    there = made.push(f"{hub.user}/results", report=report)
    entries = parse_eval_result_entries(yaml.safe_load(read(there, ".eval_results/rows.yaml")))
    assert [(e.dataset_id, e.dataset_revision, e.task_id, e.value) for e in entries] == [
        (made.data.repo_id, made.data.revision, "test_exact_match", 1.0), (made.data.repo_id, made.data.revision, "test_chrf", 41.26)]
    assert "base 0" in entries[0].notes and entries[0].date is None
    card = ModelCard(read(there, "README.md"))
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("exact_match", 1.0), ("chrf", 41.26)]
    assert "41.3 (30.0 to 55.5)" in card.text
    assert made.push(f"{hub.user}/results", report=report) == there, "the same results make no commit"


def test_a_commit_in_between_is_not_overwritten(hub, made, monkeypatch):
    repo = f"{hub.user}/race"
    publish.commit("model", repo, {"notes.txt": b"theirs"}, "Theirs")
    newest = commits.newest

    def late(*args):
        seen = newest(*args)
        hub.api.upload_file(path_or_fileobj=b"newer", path_in_repo="notes.txt", repo_id=repo)
        return seen

    monkeypatch.setattr(commits, "newest", late)
    with pytest.raises(UserError, match="moved on while we were publishing"):
        publish.commit("model", repo, {"notes.txt": b"mine"}, "Mine")
    assert read(Artifact.at("model", repo), "notes.txt") == "newer"


def test_old_files_of_ours_go_and_files_of_others_stay(hub, made):
    repo = f"{hub.user}/tidy"
    full = made.push(repo, merged=True)
    hub.api.upload_file(path_or_fileobj=b"mine", path_in_repo="NOTES.md", repo_id=repo)
    made.push(repo)
    names = set(hub.api.list_repo_files(repo))
    assert "NOTES.md" in names and "adapter_model.safetensors" in names
    assert "model.safetensors" not in names and "model.safetensors" in hub.api.list_repo_files(repo, revision=full.revision)


def test_private_stays_private(hub, made):
    repo = f"{hub.user}/secret"
    made.push(repo, private=True)
    made.push(repo)
    assert hub.api.model_info(repo).private


# --- refusals -----------------------------------------------------------------------------------
def as_zip(path):
    import torch

    torch.save({"a": torch.ones(1)}, path)


@pytest.mark.parametrize("name, write", [
    ("training_args.bin", lambda p: p.write_bytes(b"x")),
    ("optimizer.pt", lambda p: p.write_bytes(b"x")),
    ("deep/state.pkl", lambda p: p.write_bytes(b"x")),
    ("notes.txt", lambda p: p.write_bytes(pickle.dumps({"a": 1}))),
    ("other.safetensors", as_zip),
    ("short.safetensors", lambda p: p.write_bytes(b"\x08\0\0\0\0\0\0\0{}")),
    ("empty.safetensors", lambda p: p.write_bytes(b"")),
])
def test_pickles_and_broken_weights_are_refused_by_name(hub, made, tmp_path, name, write):
    shutil.copytree(made.run / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / name).parent.mkdir(exist_ok=True)
    write(tmp_path / "adapter" / name)
    with pytest.raises(UserError, match=re.escape(name)):
        publish.push(tmp_path, f"{hub.user}/never", made.base, made.data)
    assert not hub.api.repo_exists(f"{hub.user}/never")


@pytest.mark.parametrize("gone, says", [("adapter_config.json", "train first"), ("adapter_model.safetensors", "no .safetensors"),
                                        ("tokenizer_config.json", "no tokenizer")])
def test_an_incomplete_run_is_refused(hub, made, tmp_path, gone, says):
    shutil.copytree(made.run / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / gone).unlink()
    with pytest.raises(UserError, match=says):
        publish.push(tmp_path, f"{hub.user}/never", made.base, made.data)
    assert not hub.api.repo_exists(f"{hub.user}/never")


@pytest.mark.parametrize("repo, says", [("somebody/else", "You may not write"), ("a b/c d", "not a repo id")])
def test_places_where_we_may_not_write(made, repo, says):
    with pytest.raises(UserError, match=says):
        made.push(repo)


# --- the card -----------------------------------------------------------------------------------
def test_card_metadata_is_valid_and_counts(hub, made):
    from huggingface_hub import ModelCard

    card = ModelCard.load(made.model.repo_id)
    card.validate()
    data = card.data
    assert (data.base_model, data.base_model_relation, data.datasets) == (made.base.repo_id, "adapter", [made.data.repo_id])
    assert (data.library_name, data.pipeline_tag) == ("peft", "text-generation")
    (result,) = data.eval_results
    assert (result.metric_value, result.metric_args["right"], result.metric_args["n"]) == (1.0, 3, 3)
    assert result.dataset_revision == made.data.revision
    info = hub.api.model_info(made.model.repo_id)
    assert info.card_data.base_model == made.base.repo_id


def test_card_says_what_people_need(made):
    text = read(made.model, "README.md")
    for heading in ("Use it", "Before and after", "How it was trained", "Predicted and measured", "Where it comes from", "What it cannot do", "Versions"):
        assert f"\n## {heading}\n" in text
    assert f"{made.base.repo_id}@{made.base.short}" in text and f"{made.data.repo_id}@{made.data.short}" in text
    assert "3 of 3" in text and "| lora.rank | `16` |" in text


def test_card_survives_hostile_text(made):
    from huggingface_hub import ModelCard

    report = published.report()
    for s in report["samples"]:
        s.update(prompt="---\nlicense: evil\n---\n```\n| a | b |", answer="````\n<script>", right=True)
    text = publish.model_card("you/x", made.base, made.data, report, config={"a|b": "c|d\ne"}, about="Answers: 'yes' & \"no\"")
    assert ModelCard(text).data.license is None and ModelCard(text).data.base_model == made.base.repo_id
    assert "c\\|d e" in text and "`````" in text


def test_the_code_in_the_card_runs_as_it_stands(made):
    code = re.search(r"```python\n(.*?)\n```", read(made.model, "README.md"), re.S)[1]
    assert re.search(r'revision = "[^"]+", "run-[0-9a-f]{8}"', code.replace('repo, ', ''))
    prompt, answer = next(iter(published.PAIRS.items()))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code.replace("your request", prompt), "card", "exec"), {})
    assert out.getvalue().strip() == answer


def test_a_template_may_not_name_what_it_is_not_given():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="is undefined"): card.fill("model_card.md", name="x", code={}, task="causal")


@pytest.mark.parametrize("task, whole, words", [
    ("causal", False, ("PeftModel", "AutoModelForCausalLM", "apply_chat_template", ".eval()")), ("causal", True, ("AutoModelForCausalLM", "apply_chat_template")),
    ("seq2seq", False, ("PeftModel", "AutoModelForSeq2SeqLM", "attention_mask")), ("classify", False, ("PeftModel", "labels = ", "merge_and_unload")),
    ("classify", True, ('pipeline("text-classification"',)), ("image-classification", True, ('pipeline("image-classification"', "photo.jpg"))])
def test_code_of_every_task_is_python_and_names_its_revision(task, whole, words):
    code = card.usage("you/x", "run-1234abcd", whole, task, ["one", 'two "quoted"'])
    assert code.startswith("```python\n") and code.endswith("\n```") and all(w in code for w in (*words, '"you/x"', '"run-1234abcd"'))
    assert ("Peft" in code) == (not whole)
    compile(code.removeprefix("```python\n").removesuffix("```"), "card", "exec")


def test_predicted_stands_beside_measured(made):
    text = publish.model_card("you/x", made.base, made.data, plan=dict(peak_bytes=200 * 2**20, seconds=100), run=dict(peak_bytes=220 * 2**20, seconds=90, device="cpu"))
    assert "| peak memory | 200 MiB | 220 MiB | 1.10 |" in text and "| training time | 100 s | 90 s | 0.90 |" in text
    assert "Nothing was evaluated" in text


# --- verify -------------------------------------------------------------------------------------
def test_verify_compares_bytes_and_answers(made):
    checks = publish.verify(made.model)
    assert checks.ok, str(checks)
    assert [c.detail for c in checks if c.name == "answers"] == ["3 of 3 as recorded"]
    prompt = next(iter(published.PAIRS))
    wrong = publish.verify(made.model, {prompt: "base: other"})
    assert [c.name for c in wrong if not c.ok] == ["answers"]


def test_verify_finds_what_was_edited(hub, made):
    repo = f"{hub.user}/edited"
    made.push(repo)
    cfg = json.loads(read(Artifact.at("model", repo), "adapter_config.json")) | {"revision": None}
    bad = publish.commit("model", repo, {"adapter_config.json": json.dumps(cfg).encode(), "extra.txt": b"x"}, "Edit", remove=["tokenizer.json"])
    checks = {c.name: c for c in publish.verify(bad)}
    assert all(w in checks["files"].detail for w in ("adapter_config.json changed", "extra.txt added", "tokenizer.json missing"))
    assert not checks["base"].ok and "not pinned" in checks["base"].detail


def test_merged_weights_load_without_peft_and_answer_the_same(hub, made):
    from transformers import AutoModelForCausalLM

    full = made.push(f"{hub.user}/full", merged=True)
    names = hub.api.list_repo_files(full.repo_id)
    assert "model.safetensors" in names and "adapter/adapter_model.safetensors" in names and "adapter_config.json" not in names
    assert type(AutoModelForCausalLM.from_pretrained(full.repo_id, revision=full.revision)).__name__ == "LlamaForCausalLM"
    checks = publish.verify(full)
    assert checks.ok, str(checks)


# --- lineage ------------------------------------------------------------------------------------
def test_lineage_reaches_data_and_code_by_commit(hub, made):
    tree = publish.lineage(made.model)
    found = {n.role: n for n in tree.root.walk()}
    assert found["data"].name == f"{made.data.repo_id}@{made.data.short}" and found["base"].name == f"{made.base.repo_id}@{made.base.short}"
    assert found["code"].name.startswith("hfflow ")
    assert "no lineage.json" in found["base"].note and any("base" in g for g in tree.gaps)
    json.dumps(tree.as_dict())
    assert found_lineage is publish.lineage


@pytest.mark.parametrize("spell", ["{id}", "models/{id}", "model:{id}", "{id}@{sha}", "{url}", "{hub}/{id}"])
def test_lineage_takes_every_spelling(hub, made, spell):
    m = made.model
    name = spell.format(id=m.repo_id, sha=m.revision, url=m.url, hub=hub.endpoint)
    assert publish.lineage(name).root.name == f"{m.repo_id}@{m.short}"


def test_lineage_names_what_is_gone(hub, made):
    repo, rows = f"{hub.user}/orphan", f"{hub.user}/gone-rows"
    data = published.dataset(rows)
    publish.push(made.run, repo, made.base, data)
    hub.api.delete_repo(rows, repo_type="dataset")
    tree = publish.lineage(repo)
    assert any(rows in g and "not on the Hub" in g for g in tree.gaps) and rows in tree.text() and not tree.complete
    with pytest.raises(UserError, match="check the name"):
        publish.lineage("nobody/nothing")


# --- models of other tasks, as other trainers leave them -----------------------------------------
def other(kind, tok):
    "A model with random weights, its tokenizer or processor, and something that its pipeline takes."
    import numpy as np
    import transformers as tf
    from PIL import Image

    names = dict(id2label={0: "one", 1: "two"}, label2id={"one": 0, "two": 1})
    bert = tf.BertConfig(vocab_size=len(tok), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pad_token_id=tok.pad_token_id, **names)
    if kind == "token-classification": return tf.BertForTokenClassification(bert), tok, "tune qwen"
    if kind == "text-classification": return tf.BertForSequenceClassification(bert), tok, "tune qwen"
    vit = tf.ViTConfig(image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, **names)
    return tf.ViTForImageClassification(vit), tf.ViTImageProcessorPil(size=dict(height=32, width=32)), Image.fromarray(np.zeros((40, 40, 3), "uint8"))


@pytest.mark.parametrize("kind", ["text-classification", "token-classification", "image-classification"])
def test_a_model_that_another_trainer_left_is_published_for_its_own_task(hub, made, tmp_path, kind):
    import tinychat
    from transformers import pipeline

    model, processor, asked = other(kind, tinychat.tokenizer(("tune qwen",)))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    here = publish.push(tmp_path, f"{hub.user}/other-{kind}", made.base, made.data)
    assert publish.purpose(here) == {"text-classification": "classify"}.get(kind, kind) and publish.verify(here).ok
    card = read(here, "README.md")
    assert f"pipeline_tag: {kind}" in card and f'pipeline("{kind}"' in card
    found = pipeline(kind, model=here.repo_id)(asked)
    assert {x.get("label", x.get("entity")) for x in found} <= {"one", "two"} and found
    assert not {"chat_template.jinja", "generation_config.json"} & set(hub.api.list_repo_files(here.repo_id))


def test_what_does_not_answer_as_it_was_measured_is_not_published(hub, made, monkeypatch):
    "Nothing becomes main, no branch and no repo stay; a repo that was there keeps its commit."
    from hfflow.engine import merging

    plain = merging.merge
    def wrong(model, dtype=None):
        net = plain(model, dtype)
        net.get_output_embeddings().weight.data.neg_()
        net.config.tie_word_embeddings = False
        return net
    before = made.push(f"{hub.user}/right", merged=True)
    monkeypatch.setattr(merging, "merge", wrong)
    for name in ("never", "right"):
        with pytest.raises(UserError, match="is not published: a download of it does not pass the check 'answers'"): made.push(f"{hub.user}/{name}", merged=True)
    assert not hub.api.repo_exists(f"{hub.user}/never") and Artifact.at("model", before.repo_id) == before
    assert [b.name for b in hub.api.list_repo_refs(before.repo_id).branches] == ["main"]


@pytest.mark.parametrize("targets", [["q_proj", "embed_tokens"], ["q_proj", "lm_head"], ["embed_tokens"]])
def test_tied_ends_are_published_as_they_were_trained(hub, tmp_path, targets):
    "An adapter on one of two ends that share their weights: whole, the model has two, and answers as the adapter does at every position."
    import torch
    from transformers import AutoModelForCausalLM
    from hfflow import qlora, tokens

    base = published.base(f"{hub.user}/tied")
    tok, net = qlora.load_tokenizer(base), qlora.load_base(base, bits=32)
    net.config.tie_word_embeddings = True
    net.tie_weights()
    net = qlora.add_lora(net, qlora.QloraConfig(rank=4, bits=32, targets=targets))
    torch.manual_seed(0)
    for n, p in net.named_parameters():
        if "lora_" in n: p.data.normal_(std=.3)
    ids = tok("tune qwen with rank 16", return_tensors="pt").input_ids
    with torch.no_grad(): want = net.eval()(input_ids=ids).logits
    merged = qlora.merge(net)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad(): got = again(input_ids=ids).logits
    assert not again.config.tie_word_embeddings and torch.allclose(got, want, atol=1e-3)
