//! Which charts there are.

use super::chart::Mark;

/// A chart of metrics over steps; it is drawn for every stage that has one of them.
pub struct Curve {
    /// Unique among the charts of a stage.
    pub id: &'static str,
    /// What is on the vertical axis.
    pub title: &'static str,
    /// What is drawn.
    pub lines: &'static [Line],
}

/// One line of a [`Curve`].
pub struct Line {
    /// What is drawn.
    pub metric: &'static str,
    /// Metric that holds its standard error.
    pub error: Option<&'static str>,
    /// What the legend calls it.
    pub word: &'static str,
    /// How it is drawn.
    pub mark: Mark,
}

/// A metric that every training step has.
pub const fn every(metric: &'static str) -> Line {
    Line {
        metric,
        error: None,
        word: "training",
        mark: Mark::Thin,
    }
}

/// A metric of the evaluations.
const fn heldout(metric: &'static str) -> Line {
    Line {
        metric,
        error: None,
        word: "held-out",
        mark: Mark::Bold,
    }
}

const GOLD_HELDOUT: Line = Line {
    metric: "heldout/gold",
    error: Some("heldout/gold_se"),
    word: "held-out, ± 1 standard error",
    mark: Mark::Bold,
};

/// Charts over steps, in the order in which they are shown.
pub const CURVES: &[Curve] = &[
    Curve {
        id: "loss",
        title: "loss",
        lines: &[every("loss/train"), heldout("loss/heldout")],
    },
    Curve {
        id: "bits-per-byte",
        title: "loss per byte",
        lines: &[heldout("loss/heldout_bits_per_byte")],
    },
    Curve {
        id: "accuracy",
        title: "accuracy",
        lines: &[every("accuracy/train"), heldout("accuracy/heldout")],
    },
    Curve {
        id: "score",
        title: "score",
        lines: &[every("objective/score"), heldout("heldout/score")],
    },
    Curve {
        id: "gold",
        title: "gold score",
        lines: &[every("objective/gold"), GOLD_HELDOUT],
    },
    Curve {
        id: "kl",
        title: "KL from the reference",
        lines: &[every("objective/kl"), heldout("heldout/kl")],
    },
    Curve {
        id: "length",
        title: "response length",
        lines: &[every("objective/length"), heldout("heldout/length")],
    },
    Curve {
        id: "eos-rate",
        title: "EOS rate",
        lines: &[every("objective/eos_rate"), heldout("heldout/eos_rate")],
    },
    Curve {
        id: "entropy",
        title: "entropy",
        lines: &[every("objective/entropy")],
    },
    Curve {
        id: "distinct2",
        title: "distinct bigrams",
        lines: &[heldout("heldout/distinct2")],
    },
    Curve {
        id: "clip-fraction",
        title: "clip fraction",
        lines: &[
            Line {
                metric: "ppo/clip_fraction",
                error: None,
                word: "policy",
                mark: Mark::Bold,
            },
            Line {
                metric: "ppo/value_clip_fraction",
                error: None,
                word: "value",
                mark: Mark::Thin,
            },
        ],
    },
];

/// A chart of a metric against the KL of the same step (Gao et al. 2022, figure 1).
pub struct Frontier {
    /// Unique among the charts of a stage.
    pub id: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// What is on the vertical axis.
    pub score: &'static str,
    /// Metrics of KL and score of the training episodes.
    pub training: (&'static str, &'static str),
    /// The same of the evaluations.
    pub heldout: (&'static str, Line),
}

/// Charts against KL.
pub const FRONTIERS: &[Frontier] = &[
    Frontier {
        id: "frontier-score",
        title: "score against KL",
        score: "score",
        training: ("objective/kl", "objective/score"),
        heldout: ("heldout/kl", heldout("heldout/score")),
    },
    Frontier {
        id: "frontier-gold",
        title: "gold score against KL",
        score: "gold score",
        training: ("objective/kl", "objective/gold"),
        heldout: ("heldout/kl", GOLD_HELDOUT),
    },
];
