"""TRL's SFTTrainer; tokens a second of each step after two, and the seconds from the process's start to its first step."""
import tempfile
import time

import common

args = common.arguments(__doc__)
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

WARM_UP = 2


class Clock(TrainerCallback):
    def __init__(self):
        self.begins, self.ends = [], []

    def on_step_begin(self, *_args, **_kwargs):
        self.begins.append(time.time())

    def on_step_end(self, *_args, **_kwargs):
        common.wait(args)
        self.ends.append(time.time())


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
        model=AutoModelForCausalLM.from_pretrained(args.model, dtype=common.dtype(args)), args=config,
        train_dataset=Dataset.from_dict({"input_ids": rows}), processing_class=AutoTokenizer.from_pretrained(args.model),
        callbacks=[clock],
    )
    trainer.train()
# From the end of one step to the end of the next: what lies between them is the trainer's, too.
ends = clock.ends
per_second = [args.batch * args.tokens / (b - a) for a, b in zip(ends[WARM_UP - 1 :], ends[WARM_UP:])]
common.report("train", "TRL SFTTrainer", per_second, start_s=clock.begins[0] - common.STARTED)
