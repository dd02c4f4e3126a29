"""PyTorch's side of `llavacode bench training`: one pass, forward and backward to the soft tokens, for each line on stdin.

pytorch-step.py MODEL_JSON PROMPT TARGET SOFT THREADS. MODEL_JSON has the fields of a transformers configuration, with its
`model_type`; weights are random. A line of JSON is written when the model is there, and one after each pass.
"""
import json
import resource
import sys
import time

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

fields = json.loads(sys.argv[1])
prompt, target, soft, threads = map(int, sys.argv[2:])
torch.set_num_threads(threads)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).eval().requires_grad_(False)
hidden, vocab = model.config.hidden_size, model.config.vocab_size
ids = torch.randint(vocab, (prompt + target,))
vectors = 0.05 * torch.randn(soft, hidden)
scored = torch.arange(prompt - 1, prompt - 1 + target)


def one_pass():
    tokens = vectors.clone().requires_grad_()
    embedded = torch.cat([tokens, model.get_input_embeddings()(ids[soft:])])[None]
    states = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[0, scored]
    functional.cross_entropy(model.lm_head(states), ids[prompt:]).backward()
    return tokens.grad


def tell(**values):
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(dict(values, peakBytes=peak, version=torch.__version__)), flush=True)


tell()
for _ in sys.stdin:
    started, cpu = time.perf_counter(), time.process_time()
    one_pass()
    tell(seconds=time.perf_counter() - started, cpuSeconds=time.process_time() - cpu)
