"""transformers' generate(): random prompts of one length, sampling, no EOS; new tokens a second of each batch."""
import time

import common

args = common.arguments(__doc__)
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

model = AutoModelForCausalLM.from_pretrained(args.model, dtype=common.dtype(args)).eval().to(args.device)
ids = common.random_ids(args.batch, args.prompt).to(args.device)
config = GenerationConfig(
    max_new_tokens=args.tokens, min_new_tokens=args.tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=1,
    cache_implementation="static" if args.static_cache else None,
)
per_second = []
for batch in range(args.repeats + 1):
    common.wait(args)
    started = time.time()
    with torch.no_grad():
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    common.wait(args)
    if batch > 0:
        per_second.append(args.batch * args.tokens / (time.time() - started))
common.report("sample", "transformers generate" + (", static cache" if args.static_cache else ""), per_second)
