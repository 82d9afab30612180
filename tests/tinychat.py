"""A chat model of 30 thousand parameters, made on the spot: for tests that need answers, not good ones."""


def tokenizer(texts=("base: qwen rank: 16 bits: 4 please tune llama on acme/reviews, three epochs",)):
    """A byte-level BPE tokenizer with a chat template, an end token and a padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>"]
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    out = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token=special[0], pad_token=special[1],
                                  additional_special_tokens=special[2:])
    out.chat_template = ("{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
                         "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
                         "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
    return out


def model(tok, seed=0, layers=2, hidden=32, kind="llama"):
    """A random causal model for that tokenizer, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    torch.manual_seed(seed)
    ids = dict(vocab_size=len(tok), eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, bos_token_id=None)
    if kind == "gpt2":
        cfg = GPT2Config(n_embd=hidden, n_layer=layers, n_head=4, n_positions=256, **ids)
    else:
        cfg = LlamaConfig(hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, num_attention_heads=4,
                          num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False, **ids)
    out = AutoModelForCausalLM.from_config(cfg)
    for p in out.parameters():      # larger weights than the usual ones: answers that depend on the prompt
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.3)
    return out.eval()


def save(folder, **kw):
    """The model and its tokenizer, saved in a folder; the folder."""
    tok = tokenizer()
    model(tok, **kw).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def publish(name, *texts):
    """The model and its tokenizer as the repo `you/<name>` of the connected Hub; its id."""
    import tempfile
    from pathlib import Path

    import hfflow.hub

    tok, api, repo = tokenizer(*texts), hfflow.hub.connect().api, f"you/{name}"
    with tempfile.TemporaryDirectory() as d:
        model(tok).bfloat16().save_pretrained(d)
        tok.save_pretrained(d)
        (Path(d) / "README.md").write_text("---\nlicense: apache-2.0\n---\nMade by a test.\n")
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=d)
    return repo
