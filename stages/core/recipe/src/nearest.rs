//! "Did you mean": the nearest known word.

/// Names that other programs give to our keys.
const SYNONYMS: &[(&str, &str)] = &[
    ("learning_rate", "lr"),
    ("batch_size", "batch"),
    ("minibatch_size", "minibatch"),
    ("mini_batch", "minibatch"),
    ("micro_batch_size", "micro_batch"),
    ("max_steps", "steps"),
    ("num_epochs", "epochs"),
    ("ppo_epochs", "inner_epochs"),
    ("steps", "iterations"),
    ("n_layer", "layers"),
    ("num_layers", "layers"),
    ("hidden_size", "width"),
    ("n_embd", "width"),
    ("d_model", "width"),
    ("num_heads", "heads"),
    ("n_head", "heads"),
    ("intermediate_size", "mlp_width"),
    ("max_length", "context"),
    ("seq_len", "context"),
    ("beta", "coef"),
    ("lam", "lambda"),
    ("cliprange", "clip"),
    ("cliprange_value", "value_clip"),
    ("gradient_checkpointing", "checkpointing"),
    ("zero_stage", "sharding"),
    ("fsdp", "sharding"),
    ("rank", "r"),
    ("lora_alpha", "alpha"),
    ("lora_dropout", "dropout"),
    ("use_rslora", "rslora"),
    ("targets", "target_modules"),
    ("o", "output"),
    ("all", "all-linear"),
];

/// The known word that `word` was probably meant to be.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let synonym = SYNONYMS
        .iter()
        .find(|(foreign, ours)| *foreign == word && known.contains(ours));
    if let Some((_, ours)) = synonym {
        return known.iter().find(|key| *key == ours).copied();
    }
    let distance = |key: &str| strsim::damerau_levenshtein(word, key);
    let best = known.iter().copied().min_by_key(|key| distance(key))?;
    let allowed = (word.chars().count().max(best.chars().count()) / 3).max(1);
    (distance(best) <= allowed).then_some(best)
}

/// A hint that names the nearest known word, if there is one, and all of them.
pub(crate) fn hint(word: &str, known: &[&str], what: &str) -> String {
    let list = if known.is_empty() {
        "none".to_owned()
    } else {
        known.join(", ")
    };
    match nearest(word, known) {
        Some(best) => format!("did you mean `{best}`? known {what}: {list}"),
        None => format!("known {what}: {list}"),
    }
}
