"""datasets and transformers, each in a process of its own, against the Hub."""
import json


def test_datasets_round_trip(run):
    out = run("""
import json
from datasets import Dataset, DatasetDict, load_dataset
ds = DatasetDict(train=Dataset.from_dict({'n': list(range(50)), 't': ['é']*50}), test=Dataset.from_dict({'n': [1], 't': ['x']}))
ds.push_to_hub('you/round-trip')
back = load_dataset('you/round-trip')
row = next(iter(load_dataset('you/round-trip', split='train', streaming=True).skip(7)))
ds.push_to_hub('hfflow/private-data', private=True)
print(json.dumps([back['train']['n'][:], back['test'][0], row, load_dataset('hfflow/private-data', split='test').num_rows]))
""")
    assert json.loads(out.splitlines()[-1]) == [list(range(50)), {"n": 1, "t": "x"}, {"n": 7, "t": "é"}, 1]


def test_models_round_trip(run):
    out = run("""
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, AutoConfig
from huggingface_hub import HfApi
import torch
m = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2))
m.push_to_hub('you/tiny')
sha = HfApi().model_info('you/tiny').sha
n = AutoModelForCausalLM.from_pretrained('you/tiny', revision=sha)
assert all(torch.equal(a, b) for a, b in zip(m.state_dict().values(), n.state_dict().values()))
i = HfApi().model_info('you/tiny')
print(i.pipeline_tag, i.safetensors.total == sum(p.numel() for p in m.parameters()))
""")
    assert out.split() == ["text-generation", "True"]
