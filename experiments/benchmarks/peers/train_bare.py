"""A bare training loop, eager or compiled; tokens a second of each step after two (compiled: ten)."""
import time

import common

args = common.arguments(__doc__)
import torch
from transformers import AutoModelForCausalLM

WARM_UP = 10 if args.compile else 2

model = AutoModelForCausalLM.from_pretrained(args.model, dtype=common.dtype(args)).train().to(args.device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
forward = torch.compile(model) if args.compile else model
per_second = []
for step in range(WARM_UP + args.repeats):
    ids = common.random_ids(args.batch, args.tokens).to(args.device)
    common.wait(args)
    started = time.time()
    with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.autocast):
        loss = forward(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    common.wait(args)
    if step >= WARM_UP:
        per_second.append(args.batch * args.tokens / (time.time() - started))
common.report("train", "torch.compile" if args.compile else "bare eager loop", per_second)
