//! The keys that each kind of table may have, and the check that there are no others.

use std::collections::BTreeSet;

use crate::error::Problem;
use crate::nearest;
use crate::reader::location;
use crate::tree::{Entry, Node, Value};

/// Kinds of stages, in the order of a whole pipeline.
pub(crate) const KINDS: &[&str] = &["import", "pretrain", "sft", "label", "reward", "ppo"];

const OPTIMIZER: &[&str] = &[
    "optimizer.lr",
    "optimizer.betas",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.schedule",
    "optimizer.floor",
    "optimizer.warmup",
    "optimizer.warmup_from",
    "optimizer.clip",
];

const VALUE_OPTIMIZER: &[&str] = &[
    "value_optimizer.lr",
    "value_optimizer.betas",
    "value_optimizer.eps",
    "value_optimizer.weight_decay",
    "value_optimizer.schedule",
    "value_optimizer.floor",
    "value_optimizer.warmup",
    "value_optimizer.warmup_from",
    "value_optimizer.clip",
];

const TRAIN: &[&str] = &[
    "batch",
    "steps",
    "epochs",
    "dropout",
    "eval_every",
    "eval_examples",
    "nonfinite.skip",
];

const LORA: &[&str] = &["lora.r", "lora.alpha", "lora.rslora", "lora.target_modules"];

const EXECUTION: &[&str] = &[
    "dtype",
    "micro_batch",
    "checkpointing",
    "sharding",
    "save_every",
    "keep",
];

const SAMPLING: &[&str] = &[
    "max_prompt_tokens",
    "max_new_tokens",
    "temperature",
    "overlong",
    "sample_batch",
];

/// How a model that a stage continues is lengthened.
const ROPE: &[&str] = &["rope.scaling", "rope.factor", "rope.theta"];

const PRETRAIN: &[&str] = &[
    "data",
    "model",
    "model.size",
    "model.family",
    "model.layers",
    "model.width",
    "model.heads",
    "model.kv_heads",
    "model.mlp_width",
    "model.vocab_size",
    "model.max_positions",
    "model.tie_embeddings",
    "model.norm_eps",
    "model.rope_theta",
    "model.positions",
    "model.window",
    "objective",
    "context",
];

const LABEL: &[&str] = &[
    "model",
    "prompts",
    "num_prompts",
    "num_heldout",
    "responses",
    "labeler.kind",
    "labeler.rule",
    "quantize",
    "dtype",
];

/// A job of Slurm. (`environment` is a table of any names.)
const SLURM: &[&str] = &[
    "partition",
    "account",
    "qos",
    "constraint",
    "nodes",
    "gpus_per_node",
    "ranks_per_node",
    "cpus_per_node",
    "memory",
    "exclusive",
    "time",
    "signal_before",
    "restarts",
    "options",
    "setup",
    "environment",
    "program",
    "container.image",
    "container.runtime",
    "container.mounts",
];

/// A job of Kubernetes. (`volumes`, `environment` and `node_selector` are tables of any names.)
const KUBERNETES: &[&str] = &[
    "namespace",
    "service_account",
    "image",
    "nodes",
    "gpus_per_node",
    "ranks_per_node",
    "cpus_per_node",
    "memory",
    "shm",
    "queue",
    "volumes",
    "environment",
    "node_selector",
    "tolerations",
    "image_pull_secret",
    "priority_class",
    "grace",
    "restarts",
];

const PPO: &[&str] = &[
    "model",
    "quantize",
    "reference.quantize",
    "reward[].model",
    "reward[].weight",
    "reward[].quantize",
    "prompts",
    "pretrain_data",
    "ptx.coef",
    "ptx.sequences_per_episode",
    "ptx.context",
    "iterations",
    "batch",
    "minibatch",
    "inner_epochs",
    "kl.coef",
    "kl.target",
    "kl.horizon",
    "gamma",
    "lambda",
    "clip",
    "value_clip",
    "whiten_advantages",
    "no_eos_score",
    "no_eos_penalty",
    "ema",
    "eval_every",
    "eval_prompts",
    "gold",
    "value_model",
    "vf_coef",
    "max_logprob_gap",
    "nonfinite.skip",
];

/// The dotted keys of a table of this kind; `""` is the file itself.
///
/// # Panics
/// For a kind that is not in [`KINDS`] nor `""`, `tokenizer`, `cluster`, `slurm` or `kubernetes`: readers ask for those alone.
pub(crate) fn keys(kind: &str) -> Vec<&'static str> {
    let groups: &[&[&str]] = match kind {
        "" => &[&["name", "seed", "preset"]],
        "tokenizer" => &[&["kind", "vocab_size", "data", "path"]],
        "cluster" => &[&["slurm", "kubernetes"]],
        "slurm" => &[SLURM],
        "kubernetes" => &[KUBERNETES],
        "import" => &[&[
            "kind",
            "format",
            "path",
            "heldout",
            "prompt_turns",
            "conversations",
            "sentences",
        ]],
        "pretrain" => &[&["kind"], PRETRAIN, ROPE, TRAIN, OPTIMIZER, EXECUTION],
        "sft" => &[
            &[
                "kind",
                "model",
                "data",
                "context",
                "overlong",
                "pretrain_data",
                "pretrain_share",
                "quantize",
                "lora.dropout",
            ],
            LORA,
            ROPE,
            TRAIN,
            OPTIMIZER,
            EXECUTION,
        ],
        "label" => &[&["kind"], LABEL, SAMPLING],
        "reward" => &[
            &[
                "kind",
                "model",
                "data",
                "demonstrations",
                "context",
                "overlong",
                "quantize",
                "lora.dropout",
            ],
            LORA,
            TRAIN,
            OPTIMIZER,
            EXECUTION,
        ],
        "ppo" => &[
            &["kind", "lora.share_backbone"],
            PPO,
            LORA,
            SAMPLING,
            OPTIMIZER,
            VALUE_OPTIMIZER,
            EXECUTION,
        ],
        other => unreachable!("no table of kind {other:?}"),
    };
    groups.concat()
}

/// The check of a table's keys against those that its kind has.
pub(crate) struct KeyCheck<'a> {
    /// The file's name in messages.
    pub file: &'a str,
    /// Dotted keys of the kind.
    pub known: &'a [&'static str],
    /// What was found.
    pub problems: &'a mut Vec<Problem>,
}

impl KeyCheck<'_> {
    /// Reports every key of `table` that is not known; `path` is the table's place in the file,
    /// `prefix` its place in the known keys.
    pub fn check(&mut self, table: &Node, path: &str, prefix: &str) {
        for entry in table.entries() {
            let full = format!("{prefix}{}", entry.key);
            let path = join(path, &entry.key);
            let (below, items) = (format!("{full}."), format!("{full}[]."));
            let begins = |start: &str| self.known.iter().any(|key| key.starts_with(start));
            // A reference may stand where a table would describe the thing.
            let is_text = matches!(entry.node.value, Value::Text(_));
            let is_known = self.known.contains(&full.as_str());
            if begins(&below) && !(is_text && is_known) {
                self.check_table(entry, &path, &below);
            } else if begins(&items) {
                self.check_items(entry, &path, &items);
            } else if !is_known {
                let hint = nearest::hint(&entry.key, &level(self.known, prefix), "keys here");
                self.report(entry, &path, "unknown key".to_owned(), hint);
            }
        }
    }

    /// The same of a table that stands under a key, which must be one.
    pub fn check_whole(&mut self, entry: &Entry, path: &str) {
        if let Value::Table(_) = entry.node.value {
            return self.check(&entry.node, path, "");
        }
        let message = format!("must be a table, is {}", entry.node.value.written());
        let hint = format!(
            "write [{path}] and its keys below: {}",
            self.known.join(", ")
        );
        self.report(entry, path, message, hint);
    }

    fn check_table(&mut self, entry: &Entry, path: &str, prefix: &str) {
        if let Value::Table(_) = entry.node.value {
            return self.check(&entry.node, path, prefix);
        }
        let keys = level(self.known, prefix);
        let message = format!("must be a table, is {}", entry.node.value.written());
        let (key, first) = (&entry.key, keys[0]);
        let hint = format!(
            "write {key} = {{ {first} = ... }}; known keys: {}",
            keys.join(", ")
        );
        self.report(entry, path, message, hint);
    }

    fn check_items(&mut self, entry: &Entry, path: &str, prefix: &str) {
        if let Some(tables) = tables(&entry.node) {
            for (index, item) in tables.iter().enumerate() {
                self.check(item, &format!("{path}[{index}]"), prefix);
            }
            return;
        }
        let keys = level(self.known, prefix);
        let message = format!(
            "must be a list of tables, is {}",
            entry.node.value.written()
        );
        let (key, first) = (&entry.key, keys[0]);
        let hint = format!(
            "write {key} = [{{ {first} = ... }}]; known keys: {}",
            keys.join(", ")
        );
        self.report(entry, path, message, hint);
    }

    fn report(&mut self, entry: &Entry, key: &str, message: String, hint: String) {
        let location = location(self.file, &entry.key_origin);
        self.problems.push(Problem {
            location,
            key: key.to_owned(),
            message,
            hint,
        });
    }
}

fn tables(node: &Node) -> Option<&[Node]> {
    let Value::List(items) = &node.value else {
        return None;
    };
    items
        .iter()
        .all(|item| matches!(item.value, Value::Table(_)))
        .then_some(items)
}

/// The keys one step below `prefix`.
fn level(known: &[&'static str], prefix: &str) -> Vec<&'static str> {
    let mut seen = BTreeSet::new();
    let steps = known.iter().filter_map(|key| key.strip_prefix(prefix));
    let names = steps.filter_map(|rest| rest.split(['.', '[']).next());
    names.filter(|name| seen.insert(*name)).collect()
}

/// A key below a path.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}
