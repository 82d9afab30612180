"""The box "Use it" of a model's page: its lines are run, against the Hub, for a random model of each kind."""
import ast
import json
import re
from html import unescape

import pytest
import tinychat
import zoo

LABELS = ["late", "dear", "broken"]
NAMED = dict(id2label=dict(enumerate(LABELS)), label2id={l: i for i, l in enumerate(LABELS)})
WAVES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, conv_dim=(16, 16), conv_stride=(10, 8), conv_kernel=(20, 16),
             num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, classifier_proj_size=16)


def text(auto, kind, **changes):
    """A random model of a class of transformers, and a tokenizer that fits it."""
    import torch
    import transformers as tf

    tok, cfg = tinychat.tokenizer(), zoo.config(kind)
    tok.add_special_tokens({"mask_token": "<|mask|>"})
    for k, v in dict(vocab_size=len(tok), bos_token_id=None, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, **changes).items(): setattr(cfg, k, v)
    torch.manual_seed(0)
    model = getattr(tf, auto).from_config(cfg)
    for p in model.parameters():        # larger weights than the usual ones: answers that depend on the text
        if p.dim() > 1: torch.nn.init.normal_(p, std=0.3)
    return model, tok


def plain(tok):
    tok.chat_template = None
    return tok


def picture():
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    cfg = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8, **NAMED)
    return ViTForImageClassification(cfg), ViTImageProcessor(size=dict(height=32, width=32))


def sound(auto):
    import transformers as tf

    return getattr(tf, auto)(tf.Wav2Vec2Config(**WAVES, vocab_size=30, **NAMED)), tf.Wav2Vec2FeatureExtractor()


def letters(folder):
    from transformers import Wav2Vec2CTCTokenizer

    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxy"])}))
    return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))


def adapter(model, task, **changes):
    """A LoRA adapter whose last product is not zero, and a head that tells texts apart."""
    import torch
    from peft import LoraConfig, get_peft_model

    net = get_peft_model(model, LoraConfig(r=2, task_type=task, target_modules=r".*\.(query|q_proj|q|c_attn)$", **changes))
    for n, p in net.named_parameters():
        if "lora_B" in n or "modules_to_save" in n and p.dim() > 1: torch.nn.init.normal_(p, std=0.2)
    return net


def chances(net, tok):
    """How sure a classifier is of each label of the text in the box."""
    import torch

    with torch.no_grad(): found = net.eval()(**tok("your text", return_tensors="pt")).logits[0]
    return (found if len(found) == 1 else found.softmax(-1)).tolist()


WHOLE = {  # name: (its parts, the task that the Hub finds, what the box must hold)
    "sorts": (lambda f: text("AutoModelForSequenceClassification", "bert", **NAMED), "text-classification", 'pipeline("text-classification", model="you/use-sorts")'),
    "tags": (lambda f: text("AutoModelForTokenClassification", "bert"), "token-classification", 'pipeline("token-classification"'),
    "fills": (lambda f: text("AutoModelForMaskedLM", "roberta"), "fill-mask", 'pipeline("fill-mask"'),
    "chats": (lambda f: text("AutoModelForCausalLM", "llama"), "text-generation", '{"role": "user"'),
    "writes": (lambda f: (lambda m, t: (m, plain(t)))(*text("AutoModelForCausalLM", "gpt2")), "text-generation", '"Once upon a time"'),
    "t5": (lambda f: text("AutoModelForSeq2SeqLM", "t5"), "text2text-generation", "AutoModelForSeq2SeqLM"),
    "bart": (lambda f: text("AutoModelForSeq2SeqLM", "bart"), "text2text-generation", "generate"),
    "points": (lambda f: text("AutoModel", "bert"), "feature-extraction", "last_hidden_state.mean(1)"),
    "answers": (lambda f: text("AutoModelForQuestionAnswering", "bert", num_labels=2), "question-answering", "AutoModelForQuestionAnswering"),
    "sees": (lambda f: picture(), "image-classification", 'pipeline("image-classification"'),
    "hears": (lambda f: sound("Wav2Vec2ForSequenceClassification"), "audio-classification", 'pipeline("audio-classification"'),
    "listens": (lambda f: (*sound("Wav2Vec2ForCTC"), letters(f)), "automatic-speech-recognition", 'pipeline("automatic-speech-recognition"'),
}
ADAPTERS = {  # name: (base, its class, peft's task type, changes of the base's config where the adapter was trained, the task, what the box must hold)
    "sorts-lora": ("points", "AutoModelForSequenceClassification", "SEQ_CLS", NAMED, "text-classification", "AutoPeftModelForSequenceClassification.from_pretrained(\"you/use-sorts-lora\",\n    num_labels=3"),
    "other-head-lora": ("sorts", "AutoModelForSequenceClassification", "SEQ_CLS", dict(num_labels=5), "text-classification", "num_labels=5"),
    "roberta-lora": ("fills", "AutoModelForSequenceClassification", "SEQ_CLS", NAMED, "text-classification", "num_labels=3"),
    "score-lora": ("chats", "AutoModelForSequenceClassification", "SEQ_CLS", NAMED, "text-classification", "num_labels=3"),
    "rates-lora": ("points", "AutoModelForSequenceClassification", "SEQ_CLS", dict(num_labels=1), "text-classification", "a number, no label"),
    "tags-lora": ("points", "AutoModelForTokenClassification", "TOKEN_CLS", dict(num_labels=4), "token-classification", "AutoPeftModelForTokenClassification"),
    "chats-lora": ("chats", "AutoModelForCausalLM", "CAUSAL_LM", {}, "text-generation", "AutoPeftModelForCausalLM"),
    "writes-lora": ("writes", "AutoModelForCausalLM", "CAUSAL_LM", {}, "text-generation", "AutoPeftModelForCausalLM"),
    "t5-lora": ("t5", "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", {}, "text2text-generation", "AutoPeftModelForSeq2SeqLM"),
    "points-lora": ("points", "AutoModel", "FEATURE_EXTRACTION", {}, "feature-extraction", "AutoPeftModelForFeatureExtraction"),
    "answers-lora": ("answers", "AutoModelForQuestionAnswering", "QUESTION_ANS", {}, "question-answering", "AutoPeftModelForQuestionAnswering"),
    "no-type-lora": ("points", "AutoModelForSequenceClassification", None, NAMED, "text-classification", "num_labels=3"),
    "sees-lora": ("sees", "AutoModelForImageClassification", None, dict(num_labels=2), "image-classification", "AutoModelForImageClassification"),
    "listens-lora": ("listens", "AutoModelForCTC", None, {}, "automatic-speech-recognition", "AutoModelForCTC"),
}
HEADS = ["classifier", "score", "qa_outputs"]


def box(http, name):
    """What the page shows, as a browser would."""
    page = http.get(f"/you/use-{name}", headers={"Accept": "text/html"}).text
    return unescape(re.search(r'<pre class="use" tabindex="0"><code>(.*?)</code></pre>', page, re.S)[1])


@pytest.fixture(scope="module")
def ran(api, http, run, tmp_path_factory):
    """name -> (task, box, what the box's code printed): the code of each runs with the Hub as its only address."""
    import transformers as tf

    folder, sure = tmp_path_factory.mktemp("models"), {}
    def publish(name, *parts):
        own = folder / name
        own.mkdir(exist_ok=True)
        for part in parts: part.save_pretrained(own)
        api.create_repo(f"you/use-{name}")
        api.upload_folder(repo_id=f"you/use-{name}", folder_path=own)
    for name, (make, *_) in WHOLE.items():
        (folder / name).mkdir()
        publish(name, *make(folder / name))
    for name, (base, auto, task, changes, *_) in ADAPTERS.items():
        net = getattr(tf, auto).from_pretrained(folder / base, ignore_mismatched_sizes=True, **changes)
        net.config._name_or_path = f"you/use-{base}"      # as if it came from the Hub
        net.name_or_path = f"you/use-{base}"
        heads = [n for n, _ in net.named_children() if n in HEADS]
        parts = [tf.AutoTokenizer.from_pretrained(folder / base)] if name == "chats-lora" else []
        net = adapter(net, task, modules_to_save=heads if heads and auto != "AutoModelForQuestionAnswering" else None)
        if auto == "AutoModelForSequenceClassification": sure[name] = chances(net, tf.AutoTokenizer.from_pretrained(folder / base))
        publish(name, net, *parts)
    names = [*WHOLE, *ADAPTERS]
    boxes = {n: box(http, n) for n in names}
    code = f"""
import io, json, traceback, contextlib
from PIL import Image
Image.new('RGB', (40, 30), 'red').save('picture.jpg')
out = {{}}
for name, code in json.loads({json.dumps(boxes)!r}).items():
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said): exec(code, dict(__name__='page'))
        out[name] = [said.getvalue(), '']
    except BaseException: out[name] = [said.getvalue(), traceback.format_exc()[-1500:]]
print(json.dumps(out))
"""
    said = json.loads(run(code).splitlines()[-1])
    return {n: (api.model_info(f"you/use-{n}").pipeline_tag, boxes[n], *said[n], sure.get(n)) for n in names}


@pytest.mark.parametrize("name", [*WHOLE, *ADAPTERS])
def test_the_lines_of_the_box_run(ran, name):
    *_, task, part = (WHOLE | ADAPTERS)[name]
    found, lines, printed, error, _ = ran[name]
    assert not error, f"{lines}\n\n{error}"
    assert found == task and part in lines, lines
    assert printed.strip(), f"it shows nothing:\n{lines}"
    assert max(map(len, lines.splitlines())) <= 100 and len(lines.splitlines()) <= 16


def test_an_adapter_that_the_lines_load_answers_as_it_did_when_it_was_saved(ran):
    found = {n: ast.literal_eval(re.search(r"\[\[.*?\]\]", ran[n][2], re.S)[0])[0] for n, r in ran.items() if r[4]}
    assert {n: len(f) for n, f in found.items()} == {"sorts-lora": 3, "other-head-lora": 5, "roberta-lora": 3, "score-lora": 3, "rates-lora": 1, "no-type-lora": 3}
    for n, f in found.items():
        assert f == pytest.approx(ran[n][4], abs=2e-3), n
        assert max(f) - min(f) > 0.02 or n == "rates-lora" and abs(f[0]) > 0.02, "and it is no guess"
    assert any(f"'{l}'" in ran["sorts"][2] for l in LABELS) and "'score'" in ran["sorts"][2]


def test_the_info_names_class_and_processor(api, ran):
    got = {n: api.model_info(f"you/use-{n}").transformers_info for n in WHOLE}
    assert {n: (i.auto_model, i.processor) for n, i in got.items()} == {
        "sorts": ("AutoModelForSequenceClassification", "AutoTokenizer"), "tags": ("AutoModelForTokenClassification", "AutoTokenizer"),
        "fills": ("AutoModelForMaskedLM", "AutoTokenizer"), "chats": ("AutoModelForCausalLM", "AutoTokenizer"), "writes": ("AutoModelForCausalLM", "AutoTokenizer"),
        "t5": ("AutoModelForSeq2SeqLM", "AutoTokenizer"), "bart": ("AutoModelForSeq2SeqLM", "AutoTokenizer"), "points": ("AutoModel", "AutoTokenizer"),
        "answers": ("AutoModelForQuestionAnswering", "AutoTokenizer"), "sees": ("AutoModelForImageClassification", "AutoImageProcessor"),
        "hears": ("AutoModelForAudioClassification", "AutoFeatureExtractor"), "listens": ("AutoModelForCTC", "AutoProcessor")}
    assert "conversational" in api.model_info("you/use-chats").tags and "conversational" not in api.model_info("you/use-writes").tags


def test_what_strangers_write_stays_a_text(api, http):
    evil = 'x");import os;os.abort()#\n"""</code><script>'
    for name, files in {"evil": {"adapter_config.json": dict(task_type="SEQ_CLS", base_model_name_or_path=evil)},
                        "evil-type": {"adapter_config.json": dict(task_type=[evil], base_model_name_or_path=[1], auto_mapping=evil)},
                        "evil-tag": {"config.json": dict(architectures=[evil], model_type=evil)}}.items():
        api.create_repo(f"you/use-{name}")
        card = "---\npipeline_tag: " + json.dumps(evil) + "\n---\n" if name == "evil-tag" else "# x"
        from huggingface_hub import CommitOperationAdd as Add
        api.create_commit(f"you/use-{name}", [Add("README.md", card.encode()), *(Add(k, json.dumps(v).encode()) for k, v in files.items())], commit_message="x")
        lines = box(http, name)
        tree = ast.parse(lines)
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "os"], lines


def test_a_library_that_is_none_of_ours_gets_the_files(api, http):
    from huggingface_hub import CommitOperationAdd as Add

    api.create_repo("you/use-embeds")
    api.create_commit("you/use-embeds", [Add("modules.json", b"[]"), Add("config_sentence_transformers.json", b"{}"), Add("config.json", b'{"architectures":["BertModel"],"model_type":"bert"}')], commit_message="x")
    assert "from sentence_transformers import SentenceTransformer" in box(http, "embeds") and ast.parse(box(http, "embeds"))
    api.create_repo("you/use-files")
    api.create_commit("you/use-files", [Add("model.onnx", b"x")], commit_message="x")
    assert 'snapshot_download("you/use-files")' in box(http, "files")
