//! Every metric's name, declared once with unit and meaning.

/// A metric's declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricSpec {
    /// Its name, like a path.
    pub name: &'static str,
    /// Its unit; `1` for pure numbers.
    pub unit: &'static str,
    /// What it says.
    pub meaning: &'static str,
}

const fn metric(name: &'static str, unit: &'static str, meaning: &'static str) -> MetricSpec {
    MetricSpec {
        name,
        unit,
        meaning,
    }
}

/// Every metric that any stage writes.
pub const METRICS: &[MetricSpec] = &[
    metric(
        "loss/train",
        "nats",
        "mean training loss of the update (per predicted token; reward: per prompt)",
    ),
    metric("loss/heldout", "nats", "the same loss on held-out data"),
    metric(
        "loss/heldout_bits_per_byte",
        "bits/byte",
        "held-out loss per UTF-8 byte of text (where every token is predicted: causal pretraining)",
    ),
    metric(
        "accuracy/train",
        "1",
        "share of training predictions (reward: pairs) that are right",
    ),
    metric("accuracy/heldout", "1", "the same share on held-out data"),
    metric(
        "calibration/ece",
        "1",
        "expected calibration error of the pair probabilities, held out",
    ),
    metric("reward/mean", "1", "mean reward of the responses"),
    metric("reward/std", "1", "standard deviation of the rewards"),
    metric(
        "reward/margin",
        "1",
        "mean reward of the better minus the worse response of a pair",
    ),
    metric(
        "objective/kl",
        "nats/episode",
        "mean over episodes of the sum of log pi - log ref",
    ),
    metric(
        "objective/kl_k3",
        "nats/episode",
        "the same by Schulman's k3 estimator, never negative",
    ),
    metric(
        "objective/score",
        "1",
        "mean score: normalised reward after the EOS rule",
    ),
    metric(
        "objective/score_std",
        "1",
        "standard deviation of the scores",
    ),
    metric(
        "objective/gold",
        "1",
        "mean gold score; used for nothing but evaluation",
    ),
    metric("objective/gold_se", "1", "standard error of objective/gold"),
    metric(
        "objective/entropy",
        "nats/token",
        "mean -log pi of the sampled tokens",
    ),
    metric(
        "objective/eos_rate",
        "1",
        "share of the responses that ended with EOS",
    ),
    metric(
        "objective/length",
        "tokens",
        "mean response length, EOS included",
    ),
    metric(
        "objective/rlhf_reward",
        "1",
        "mean over episodes of score - kl_coef * KL",
    ),
    metric("heldout/score", "1", "mean score on held-out prompts"),
    metric("heldout/gold", "1", "mean gold score on held-out prompts"),
    metric("heldout/gold_se", "1", "standard error of heldout/gold"),
    metric(
        "heldout/kl",
        "nats/episode",
        "KL to the reference on held-out prompts",
    ),
    metric(
        "heldout/eos_rate",
        "1",
        "share of held-out responses that ended with EOS",
    ),
    metric(
        "heldout/length",
        "tokens",
        "mean length of held-out responses, EOS included",
    ),
    metric(
        "heldout/distinct2",
        "1",
        "different bigrams over all bigrams of held-out responses, in groups of 512",
    ),
    metric(
        "ppo/policy_loss",
        "1",
        "clipped surrogate loss of the policy",
    ),
    metric(
        "ppo/value_loss",
        "1",
        "(clipped) squared error of the value model, halved",
    ),
    metric(
        "ppo/ptx_loss",
        "nats/token",
        "language-model loss on the mixed-in pretraining text",
    ),
    metric(
        "ppo/clip_fraction",
        "1",
        "share of tokens at which the ratio clip was active",
    ),
    metric(
        "ppo/value_clip_fraction",
        "1",
        "share of tokens at which the value clip was active",
    ),
    metric(
        "ppo/ratio_max",
        "1",
        "largest ratio of new to old probability",
    ),
    metric(
        "ppo/approx_kl",
        "nats/token",
        "mean k2 estimate of KL(old || new) during the update: half the squared log ratio",
    ),
    metric(
        "ppo/explained_variance",
        "1",
        "1 - Var(returns - values) / Var(returns)",
    ),
    metric(
        "ppo/logprob_gap_max",
        "nats",
        "largest |sampled - recomputed| log-prob of a token in the first minibatch, before its update",
    ),
    metric(
        "ppo/logprob_gap_mean",
        "nats",
        "mean |sampled - recomputed| log-prob in the first minibatch, before its update",
    ),
    metric(
        "ppo/kl_coef",
        "1",
        "coefficient of the KL penalty in this iteration",
    ),
    metric(
        "ppo/value_grad_norm",
        "1",
        "gradient norm of a value model of its own before clipping",
    ),
    metric("optimizer/lr", "1", "learning rate of the update"),
    metric(
        "optimizer/grad_norm",
        "1",
        "global gradient norm before clipping",
    ),
    metric(
        "optimizer/skipped",
        "updates",
        "updates skipped so far for non-finite numbers",
    ),
    metric(
        "time/step",
        "s",
        "wall time of the update or iteration, without evaluations and snapshots",
    ),
    metric(
        "time/data",
        "s",
        "wait for the update's batch, part of time/step",
    ),
    metric("time/sample", "s", "sampling of the responses"),
    metric(
        "time/score",
        "s",
        "reward model, reference and value passes over the rollout",
    ),
    metric("time/update", "s", "gradient updates on the rollout"),
    metric("time/evaluate", "s", "evaluation on held-out data"),
    metric(
        "tokens_per_second",
        "tokens/s",
        "tokens trained on (ppo: sampled) per second",
    ),
    metric(
        "episodes_per_second",
        "episodes/s",
        "episodes collected and learned from per second",
    ),
    metric(
        "mfu",
        "1",
        "the step's model FLOPs (6 N a token and attention's; sampling and scoring 2 N) over the time \
         that a large matrix product in the same format would take for as many",
    ),
    metric(
        "memory/peak",
        "bytes",
        "most memory held since the stage's process began (GPU: by tensors; CPU: by the whole process)",
    ),
    metric(
        "memory/start",
        "bytes",
        "memory/peak before the stage had a model: libtorch itself, which `rlhf plan` leaves out",
    ),
    metric(
        "memory/resident",
        "bytes",
        "memory held at the end of the step (GPU: by tensors; CPU: by the whole process)",
    ),
    metric(
        "data/epoch",
        "epochs",
        "passes over the training data so far",
    ),
];

/// The declaration of a metric.
pub fn spec(name: &str) -> Option<&'static MetricSpec> {
    METRICS.iter().find(|spec| spec.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_declared_once_with_unit_and_meaning() {
        let names: BTreeSet<_> = METRICS.iter().map(|spec| spec.name).collect();
        assert_eq!(names.len(), METRICS.len());
        assert!(
            METRICS
                .iter()
                .all(|spec| !spec.unit.is_empty() && spec.meaning.len() > 8)
        );
        assert_eq!(
            spec("objective/kl").map(|spec| spec.unit),
            Some("nats/episode")
        );
        assert_eq!(spec("objective/kI"), None);
    }
}
