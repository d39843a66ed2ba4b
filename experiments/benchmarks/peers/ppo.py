"""TRL 0.29.1's PPOTrainer (the last TRL that has one), separate reward and value models; response tokens a second of each
iteration after the first. Run it with PYTHONPATH naming the folder of that version."""
import tempfile
import time

import common

args = common.arguments(__doc__)
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

MINIBATCHES = 4
iterations = args.repeats + 1


class Clock(TrainerCallback):
    def __init__(self):
        self.ends = []

    def on_step_end(self, *_args, **_kwargs):
        common.wait(args)
        self.ends.append(time.time())


def policy():
    return AutoModelForCausalLM.from_pretrained(args.model, dtype=common.dtype(args))


def scalar():
    return AutoModelForSequenceClassification.from_pretrained(args.reward, num_labels=1, dtype=common.dtype(args))


tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
rows = Dataset.from_dict({"input_ids": common.random_ids(args.batch * 8, args.prompt).tolist()})
with tempfile.TemporaryDirectory() as folder:
    config = PPOConfig(
        output_dir=folder, per_device_train_batch_size=args.batch // MINIBATCHES, gradient_accumulation_steps=MINIBATCHES,
        num_mini_batches=MINIBATCHES, local_rollout_forward_batch_size=args.batch, total_episodes=args.batch * iterations,
        response_length=args.tokens, num_ppo_epochs=1, learning_rate=1e-6, bf16=False, fp16=False, use_cpu=args.device == "cpu",
        report_to=[], num_sample_generations=0, save_strategy="no", gradient_checkpointing=False, logging_steps=1,
        kl_coef=0.02, temperature=1.0, disable_tqdm=True, dataloader_num_workers=0,
    )
    clock = Clock()
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy(), ref_model=policy(), reward_model=scalar(),
        value_model=scalar(), train_dataset=rows, eval_dataset=rows.select(range(8)), callbacks=[clock],
    )
    trainer.train()
ends = clock.ends
per_second = [args.batch * args.tokens / (b - a) for a, b in zip(ends, ends[1:])]
common.report("ppo", "TRL 0.29 PPOTrainer", per_second)
