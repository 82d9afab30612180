"""Small random models of many architectures, made from their configs: what holds for one must hold for all."""

KINDS = ("llama", "llama_tied", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "phi", "phi3", "gpt2", "gpt_neox", "opt", "mixtral", "qwen3_moe",
         "falcon", "bloom", "bert", "roberta", "distilbert", "gpt2_labels", "t5", "bart", "whisper")
CLASSIFY = ("bert", "roberta", "distilbert", "gpt2_labels")
MIXTURES = ("mixtral", "qwen3_moe")
SEQ2SEQ = ("t5", "bart", "whisper")
VOCAB = 320


def config(kind):
    """Two layers, 64 wide, 320 tokens: 0 ends, 1 pads, 2 begins."""
    import transformers as tf
    ids = dict(vocab_size=VOCAB, eos_token_id=0, pad_token_id=1, bos_token_id=2)
    some = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
    gqa = dict(some, num_key_value_heads=2, tie_word_embeddings=False)
    gemma = dict(gqa, head_dim=16, query_pre_attn_scalar=16, tie_word_embeddings=True)
    gpt2 = dict(n_embd=64, n_layer=2, n_head=4, n_positions=64, **ids)
    two = dict(d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96)
    return {
        "llama": lambda: tf.LlamaConfig(**gqa, **ids),
        "llama_tied": lambda: tf.LlamaConfig(**gqa | {"tie_word_embeddings": True}, **ids),
        "qwen2": lambda: tf.Qwen2Config(**gqa, **ids),
        "qwen3": lambda: tf.Qwen3Config(**gqa | {"tie_word_embeddings": True}, head_dim=16, **ids),
        "gemma2": lambda: tf.Gemma2Config(**gemma, **ids),
        "gemma3": lambda: tf.Gemma3TextConfig(**gemma, **ids),
        "mistral": lambda: tf.MistralConfig(**gqa, sliding_window=8, **ids),
        "phi": lambda: tf.PhiConfig(**some, **ids),
        "phi3": lambda: tf.Phi3Config(**gqa, **ids),
        "gpt2": lambda: tf.GPT2Config(**gpt2),
        "gpt_neox": lambda: tf.GPTNeoXConfig(**some, tie_word_embeddings=False, **ids),
        "opt": lambda: tf.OPTConfig(hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=64, **ids),
        "mixtral": lambda: tf.MixtralConfig(**gqa, num_local_experts=4, **ids),
        "qwen3_moe": lambda: tf.Qwen3MoeConfig(**gqa, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, **ids),
        "falcon": lambda: tf.FalconConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, **ids),
        "bloom": lambda: tf.BloomConfig(hidden_size=64, n_layer=2, n_head=4, **ids),
        "bert": lambda: tf.BertConfig(**some, num_labels=3, **ids),
        "roberta": lambda: tf.RobertaConfig(**some, num_labels=3, **ids),
        "distilbert": lambda: tf.DistilBertConfig(dim=64, hidden_dim=96, n_layers=2, n_heads=4, max_position_embeddings=64, num_labels=3, **ids),
        "gpt2_labels": lambda: tf.GPT2Config(**gpt2, num_labels=3),
        "t5": lambda: tf.T5Config(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=1, **ids),
        "bart": lambda: tf.BartConfig(**two, max_position_embeddings=64, decoder_start_token_id=0, **ids),
        "whisper": lambda: tf.WhisperConfig(**two, num_mel_bins=8, max_source_positions=50, max_target_positions=32, decoder_start_token_id=2,
                                            suppress_tokens=None, begin_suppress_tokens=None, **ids)}[kind]()


def model(kind, std=0.15, **changes):
    """A model of that architecture with random weights, in fp32; `changes` to its config."""
    import torch
    import transformers as tf
    cfg = config(kind)
    for k, v in changes.items(): setattr(cfg, k, v)
    torch.manual_seed(0)
    auto = (tf.AutoModelForSequenceClassification if kind in CLASSIFY else tf.AutoModelForSpeechSeq2Seq if kind == "whisper" else
            tf.AutoModelForSeq2SeqLM if kind in SEQ2SEQ else tf.AutoModelForCausalLM)
    out = auto.from_config(cfg)
    for n, p in out.named_parameters():
        if p.dim() > 1 and "embed_positions" not in n: torch.nn.init.normal_(p, std=std)
    return out.eval()


def batch(kind, seed=0):
    """Three rows that such a model learns from, as its forward takes them."""
    import torch
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (3, 11), generator=g)
    if kind in CLASSIFY: return {"input_ids": ids, "labels": torch.tensor([0, 2, 1])}
    if kind == "whisper": return {"input_features": torch.randn(3, 8, 100, generator=g), "labels": ids[:, :6].contiguous()}
    return {"input_ids": ids, "labels": ids[:, :6].contiguous() if kind in SEQ2SEQ else ids}
