//! What holds where neither the configuration nor a preset speaks: choices of ours, each with its
//! reason. Keys without a default (data, models, length of the training) must be written.

use crate::presets::{Constant, Setting};
use Setting::{Flag, Integer, Number, Pair, Text};

/// Kinds that a default holds for.
type Kinds = &'static [&'static str];

const TRAINED: Kinds = &["pretrain", "sft", "reward", "ppo"];
const LOOPS: Kinds = &["pretrain", "sft", "reward"];
const SAMPLED: Kinds = &["label", "ppo"];

const ADAPTED: Kinds = &["sft", "reward", "ppo"];

const DEFAULTS: &[(Kinds, &str, Setting, &str)] = &[
    (
        &["import"],
        "heldout",
        Number(0.05),
        "one conversation in twenty",
    ),
    (
        &["import"],
        "prompt_turns",
        Integer(3),
        "question, answer, question",
    ),
    (
        &["import"],
        "conversations",
        Integer(2000),
        "seconds of work",
    ),
    (
        &["import"],
        "sentences",
        Integer(20),
        "a hundred tokens of filler",
    ),
    (
        TRAINED,
        "optimizer.betas",
        Pair(0.9, 0.95),
        "GPT-3's and InstructGPT's",
    ),
    (
        &["pretrain", "sft", "reward"],
        "optimizer.eps",
        Number(1e-8),
        "Adam's own (Kingma and Ba 2015)",
    ),
    (
        &["ppo"],
        "optimizer.eps",
        Number(1e-5),
        "the N+ details: small second moments of a policy",
    ),
    (
        &["pretrain"],
        "optimizer.weight_decay",
        Number(0.1),
        "GPT-3's",
    ),
    (
        &["sft", "reward", "ppo"],
        "optimizer.weight_decay",
        Number(0.0),
        "a short training forgets enough",
    ),
    (
        &["pretrain"],
        "optimizer.lr",
        Number(6e-4),
        "GPT-3's for 125M",
    ),
    (
        &["sft", "reward"],
        "optimizer.lr",
        Number(1e-5),
        "near InstructGPT's 9.65e-6 and 9e-6",
    ),
    (&["ppo"], "optimizer.lr", Number(3e-6), "the N+ details'"),
    (
        LOOPS,
        "optimizer.schedule",
        Text("cosine"),
        "GPT-3's and InstructGPT's",
    ),
    (
        &["ppo"],
        "optimizer.schedule",
        Text("constant"),
        "InstructGPT's",
    ),
    (TRAINED, "optimizer.floor", Number(0.1), "InstructGPT's"),
    (
        TRAINED,
        "optimizer.warmup",
        Integer(0),
        "InstructGPT's SFT has none",
    ),
    (
        TRAINED,
        "optimizer.warmup_from",
        Number(0.0),
        "from nothing",
    ),
    (TRAINED, "optimizer.clip", Number(1.0), "GPT-3's"),
    (
        &["pretrain"],
        "objective",
        Text("causal"),
        "next tokens, as every GPT",
    ),
    (&["pretrain"], "batch", Integer(64), "fits small machines"),
    (&["sft"], "batch", Integer(32), "InstructGPT's"),
    (
        &["sft"],
        "pretrain_share",
        Number(0.1),
        "InstructGPT's for what PPO starts from (C.3)",
    ),
    (
        &["reward"],
        "batch",
        Integer(64),
        "InstructGPT's, in prompts",
    ),
    (LOOPS, "dropout", Number(0.0), "the N+ details'"),
    (
        LOOPS,
        "eval_every",
        Integer(50),
        "often enough to see a curve",
    ),
    (
        LOOPS,
        "eval_examples",
        Integer(256),
        "a standard error of a few percent",
    ),
    (
        TRAINED,
        "nonfinite.skip",
        Integer(0),
        "a non-finite number stops the run",
    ),
    (
        &["sft", "reward", "label", "ppo"],
        "overlong",
        Text("error"),
        "nothing is cut without being told",
    ),
    (
        &["label"],
        "responses",
        Integer(4),
        "InstructGPT's K = 4 to 9, the least",
    ),
    (
        &["label"],
        "num_prompts",
        Integer(1000),
        "a first reward model",
    ),
    (
        &["label"],
        "num_heldout",
        Integer(100),
        "an accuracy within a few percent",
    ),
    (
        SAMPLED,
        "temperature",
        Number(1.0),
        "the model's own distribution",
    ),
    (
        SAMPLED,
        "sample_batch",
        Integer(64),
        "decoding is bound by reading weights up to about this many rows",
    ),
    (
        &["sft", "label", "reward", "ppo"],
        "quantize",
        Flag(false),
        "off: exact",
    ),
    (&["ppo"], "reference.quantize", Flag(false), "off: exact"),
    (&["ppo"], "batch", Integer(512), "InstructGPT's"),
    (&["ppo"], "minibatch", Integer(64), "InstructGPT's"),
    (&["ppo"], "inner_epochs", Integer(1), "InstructGPT's"),
    (&["ppo"], "kl.coef", Number(0.02), "InstructGPT's"),
    (
        &["ppo"],
        "kl.horizon",
        Number(10_000.0),
        "lm-human-preferences code",
    ),
    (&["ppo"], "gamma", Number(1.0), "InstructGPT's: no discount"),
    (&["ppo"], "lambda", Number(0.95), "Stiennon et al. 2020"),
    (&["ppo"], "clip", Number(0.2), "InstructGPT's"),
    (
        &["ppo"],
        "value_clip",
        Number(0.2),
        "lm-human-preferences code",
    ),
    (
        &["ppo"],
        "value_model",
        Text("separate"),
        "InstructGPT's: a critic as large as the reward model",
    ),
    (
        &["ppo"],
        "vf_coef",
        Number(0.1),
        "lm-human-preferences code, and TRL's",
    ),
    (&["ppo"], "whiten_advantages", Flag(true), "the N+ details'"),
    (
        &["ppo"],
        "no_eos_score",
        Number(-1.0),
        "the N+ details': a response has to end",
    ),
    (
        &["ppo"],
        "ema",
        Flag(false),
        "off: the last weights are the result",
    ),
    (&["ppo"], "gold", Flag(false), "no known rule"),
    (&["ppo"], "ptx.coef", Number(27.8), "InstructGPT's"),
    (
        &["ppo"],
        "ptx.sequences_per_episode",
        Integer(1),
        "an eighth of InstructGPT's, for its cost",
    ),
    (
        &["ppo"],
        "eval_every",
        Integer(10),
        "often enough to see a curve",
    ),
    (
        &["ppo"],
        "eval_prompts",
        Integer(256),
        "a standard error of a few percent",
    ),
    (ADAPTED, "lora.r", Integer(8), "peft's"),
    (
        ADAPTED,
        "lora.alpha",
        Number(16.0),
        "twice the rank, as is usual",
    ),
    (&["sft", "reward"], "lora.dropout", Number(0.0), "peft's"),
    (
        ADAPTED,
        "lora.rslora",
        Flag(false),
        "Hu et al.'s scale, alpha over r",
    ),
    (
        ADAPTED,
        "lora.target_modules",
        Text("all-linear"),
        "the best place for a given number of parameters (Dettmers et al. 2023)",
    ),
    (
        &["ppo"],
        "lora.share_backbone",
        Flag(false),
        "works with any reward model",
    ),
    (TRAINED, "dtype", Text("f32"), "exact everywhere"),
    (&["label"], "dtype", Text("f32"), "exact everywhere"),
    (
        TRAINED,
        "checkpointing",
        Flag(false),
        "faster; turn it on where memory is short",
    ),
    (
        TRAINED,
        "sharding",
        Text("none"),
        "the least communication; shard where memory is short",
    ),
    (LOOPS, "save_every", Integer(100), "minutes of work at risk"),
    (
        &["ppo"],
        "save_every",
        Integer(10),
        "minutes of work at risk",
    ),
    (TRAINED, "keep", Integer(1), "what a resume needs"),
];

/// The default of a key of one kind of stage, with its reason.
pub(crate) fn default(kind: &str, key: &str) -> Option<Constant> {
    let mut rows = DEFAULTS.iter().filter(|(_, name, _, _)| *name == key);
    rows.find_map(|&(kinds, key, value, source)| {
        let kind = kinds.iter().find(|known| **known == kind)?;
        Some(Constant {
            kind,
            key,
            value,
            source,
        })
    })
}

/// Every default, one for each kind and key.
pub fn explain() -> Vec<Constant> {
    let expand = |&(kinds, key, value, source): &(Kinds, &'static str, Setting, &'static str)| {
        kinds.iter().map(move |kind| Constant {
            kind,
            key,
            value,
            source,
        })
    };
    DEFAULTS.iter().flat_map(expand).collect()
}
