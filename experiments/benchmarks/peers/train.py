"""A bare eager training loop, and TRL's SFTTrainer on the same model and rows; tokens a second of each step after two."""
import tempfile
import time

import common

args = common.arguments(__doc__)
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

WARM_UP = 2


def load():
    return AutoModelForCausalLM.from_pretrained(args.model, dtype=common.dtype(args)).train().to(args.device)


def bare():
    model = load()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    per_second = []
    for step in range(WARM_UP + args.repeats):
        ids = common.random_ids(args.batch, args.tokens).to(args.device)
        common.wait(args)
        started = time.time()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        common.wait(args)
        if step >= WARM_UP:
            per_second.append(args.batch * args.tokens / (time.time() - started))
    common.report("train", "bare eager loop", per_second)


class Clock(TrainerCallback):
    def __init__(self):
        self.begins, self.ends = [], []

    def on_step_begin(self, *_args, **_kwargs):
        self.begins.append(time.time())

    def on_step_end(self, *_args, **_kwargs):
        common.wait(args)
        self.ends.append(time.time())


def sft_trainer():
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    steps = WARM_UP + args.repeats
    rows = common.random_ids(args.batch * steps, args.tokens).tolist()
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=args.batch, max_steps=steps, use_cpu=args.device == "cpu", bf16=False,
            report_to=[], save_strategy="no", gradient_checkpointing=False, logging_steps=1000, max_length=args.tokens,
            disable_tqdm=True, optim="adamw_torch_fused", learning_rate=1e-6,
        )
        clock = Clock()
        trainer = SFTTrainer(
            model=load(), args=config, train_dataset=Dataset.from_dict({"input_ids": rows}),
            processing_class=AutoTokenizer.from_pretrained(args.model), callbacks=[clock],
        )
        trainer.train()
    # From the end of one step to the end of the next: what lies between them is the trainer's, too.
    ends = clock.ends
    per_second = [args.batch * args.tokens / (b - a) for a, b in zip(ends[WARM_UP - 1 :], ends[WARM_UP:])]
    return per_second, clock.begins[0]


per_second, first_step = sft_trainer()
common.report("train", "TRL SFTTrainer", per_second, start_s=first_step - common.STARTED)
bare()
