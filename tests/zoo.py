"""Small random models of many architectures, made from their configs: what holds for one must hold for all."""

VOCAB = 320
IDS = dict(vocab_size=VOCAB, eos_token_id=0, pad_token_id=1, bos_token_id=2)
WIDE = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
FULL = dict(WIDE, intermediate_size=96, max_position_embeddings=64)
SMALL = dict(FULL, num_key_value_heads=2)                                   # two heads of queries for each of keys
HEADS = dict(SMALL, head_dim=16)
UNTIED = dict(tie_word_embeddings=False)
GPT2 = dict(n_embd=64, n_layer=2, n_head=4, n_positions=64)
TWO = dict(d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96)
T5 = dict(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=1)
CONFIGS = {     # what a config needs to be two layers of width 64; each name is transformers' model type, or stands in TYPES
    "llama": SMALL | UNTIED, "llama_tied": dict(SMALL, tie_word_embeddings=True), "qwen2": SMALL | UNTIED, "qwen3": dict(HEADS, tie_word_embeddings=True),
    "gemma": HEADS, "gemma2": dict(HEADS, query_pre_attn_scalar=16, final_logit_softcapping=1., sliding_window=8),
    "gemma3": dict(HEADS, query_pre_attn_scalar=16, sliding_window=6), "mistral": dict(SMALL, sliding_window=8) | UNTIED,
    "phi": FULL, "phi3": SMALL | UNTIED, "olmo2": FULL, "stablelm": dict(FULL, num_key_value_heads=4), "starcoder2": dict(SMALL, sliding_window=8), "cohere": SMALL,
    "glm": HEADS, "smollm3": SMALL, "granite": dict(SMALL, logits_scaling=4.), "gpt2": GPT2, "gpt_neox": FULL | UNTIED,
    "opt": dict(WIDE, ffn_dim=96, max_position_embeddings=64, word_embed_proj_dim=64), "mixtral": dict(SMALL, num_local_experts=4) | UNTIED,
    "qwen3_moe": dict(HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32) | UNTIED, "gpt_oss": dict(HEADS, num_local_experts=4),
    "falcon": WIDE, "bloom": dict(hidden_size=64, n_layer=2, n_head=4), "mamba": dict(hidden_size=64, state_size=4, num_hidden_layers=2),
    "lfm2": dict(SMALL, layer_types=["conv", "full_attention"]),
    "jamba": dict(SMALL, num_experts=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, mamba_d_state=4,
                  mamba_dt_rank=4, use_mamba_kernels=False),
    "phimoe": dict(HEADS, num_local_experts=4),
    "deepseek_v3": dict(FULL, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16,
                        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_group=1, topk_group=1, first_k_dense_replace=0),
    "bert": dict(FULL, num_labels=3), "roberta": dict(FULL, num_labels=3), "gpt2_labels": dict(GPT2, num_labels=3),
    "distilbert": dict(dim=64, hidden_dim=96, n_layers=2, n_heads=4, max_position_embeddings=64, num_labels=3),
    "deberta-v2": dict(FULL, relative_attention=True, pos_att_type=["p2c", "c2p"], num_labels=3),
    "t5": T5, "longt5": dict(T5, local_radius=4),
    "bart": dict(TWO, max_position_embeddings=64, decoder_start_token_id=0),
    "whisper": dict(TWO, num_mel_bins=8, max_source_positions=50, max_target_positions=32, decoder_start_token_id=2, suppress_tokens=None,
                    begin_suppress_tokens=None),
}
TYPES = {"llama_tied": "llama", "gemma3": "gemma3_text", "gpt2_labels": "gpt2"}
CLASSIFY = ("bert", "roberta", "distilbert", "gpt2_labels", "deberta-v2")
SEQ2SEQ = ("t5", "bart", "whisper", "longt5")
CAUSAL = tuple(kind for kind in CONFIGS if kind not in CLASSIFY + SEQ2SEQ)
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v3")
READ = {"mamba": ("x_proj", "dt_proj", "out_proj"), "jamba": ("x_proj", "dt_proj", "out_proj"), "phimoe": ("router",)}      # linear layers without adapter


def config(kind):
    """Two layers, 64 wide, 320 tokens: 0 ends, 1 pads, 2 begins."""
    import transformers as tf
    return tf.AutoConfig.for_model(TYPES.get(kind, kind), **CONFIGS[kind], **IDS)


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
    for p in out.parameters():
        if p.dim() > 1 and p.requires_grad: torch.nn.init.normal_(p, std=std)    # Whisper's sinusoids are no weights
    return out.eval()


def batch(kind, seed=0):
    """Three rows that such a model learns from, as its forward takes them."""
    import torch
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (3, 11), generator=g)
    if kind in CLASSIFY: return {"input_ids": ids, "labels": torch.tensor([0, 2, 1])}
    if kind == "whisper": return {"input_features": torch.randn(3, 8, 100, generator=g), "labels": ids[:, :6].contiguous()}
    return {"input_ids": ids, "labels": ids[:, :6].contiguous() if kind in SEQ2SEQ else ids}
