"""What the scripts of the other side share: their arguments, and how they report.

Each script prints a JSON line: {"work": ..., "side": ..., "per_second": [...], "start_s": ..., "versions": {...}}.
"""
import argparse
import json
import os
import sys
import time

STARTED = time.time()
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="a language model's folder (Hugging Face format)")
    parser.add_argument("--reward", help="a reward model's folder")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--prompt", type=int, default=0, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, required=True, help="new tokens, or those of a training row")
    parser.add_argument("--repeats", type=int, default=3, help="timed batches or steps, after the warm-up")
    parser.add_argument("--autocast", action="store_true", help="train: bf16 where autocast takes it, whatever the weights are")
    parser.add_argument("--compile", action="store_true", help="train: with torch.compile")
    parser.add_argument("--static-cache", action="store_true", help="generate: keys and values in tensors of a fixed size")
    return parser.parse_args()


def dtype(args):
    import torch

    return {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]


def random_ids(rows, columns):
    import torch

    return torch.randint(300, 4000, (rows, columns), generator=torch.Generator().manual_seed(0))


def wait(args):
    """Waits for what was queued on a GPU."""
    if args.device == "cuda":
        import torch

        torch.cuda.synchronize()


def report(work, side, per_second, **further):
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if "trl" in sys.modules:
        trl = sys.modules["trl"].__version__
        versions["trl (PPO)" if work == "ppo" else "trl"] = trl
    line = {"work": work, "side": side, "per_second": per_second, "versions": versions, **further}
    print(json.dumps(line), flush=True)
