//! Learning to summarize: Stiennon et al. 2020 (arXiv 2009.01325); numbers of the 1.3B policy. What the
//! paper leaves open comes from the code of its ancestor, lm-human-preferences (Ziegler et al. 2019).

use super::Setting::{Flag, Integer, Number, Text};
use super::{Constant, constant};

pub(super) const CONSTANTS: &[Constant] = &[
    constant(
        "sft",
        "batch",
        Integer(128),
        "Stiennon et al. 2020, appendix B",
    ),
    constant(
        "sft",
        "epochs",
        Integer(1),
        "Stiennon et al. 2020, appendix B",
    ),
    constant(
        "sft",
        "optimizer.lr",
        Number(6.35e-5),
        "Stiennon et al. 2020, appendix B (1.3B; 3B: 5.66e-5, 6.7B and 13B: 2.83e-5)",
    ),
    constant(
        "reward",
        "batch",
        Integer(64),
        "Stiennon et al. 2020, appendix B",
    ),
    constant(
        "reward",
        "epochs",
        Integer(1),
        "Stiennon et al. 2020, appendix B",
    ),
    constant(
        "reward",
        "optimizer.lr",
        Number(1.5e-5),
        "Stiennon et al. 2020, appendix B (1.3B; 6.7B: 5e-6)",
    ),
    constant(
        "reward",
        "optimizer.schedule",
        Text("cosine"),
        "Stiennon et al. 2020, appendix B",
    ),
    constant(
        "ppo",
        "iterations",
        Integer(1953),
        "Stiennon et al. 2020, appendix B (1M episodes by 512)",
    ),
    constant(
        "ppo",
        "batch",
        Integer(512),
        "Stiennon et al. 2020, appendix B (1.3B; 6.7B: 256)",
    ),
    constant(
        "ppo",
        "minibatch",
        Integer(512),
        "lm-human-preferences code (one minibatch)",
    ),
    constant(
        "ppo",
        "inner_epochs",
        Integer(4),
        "Stiennon et al. 2020, appendix B",
    ),
    constant(
        "ppo",
        "kl.coef",
        Number(0.05),
        "Stiennon et al. 2020, appendix B",
    ),
    constant(
        "ppo",
        "gamma",
        Number(1.0),
        "Stiennon et al. 2020, appendix B",
    ),
    constant(
        "ppo",
        "lambda",
        Number(0.95),
        "Stiennon et al. 2020, appendix B",
    ),
    constant("ppo", "clip", Number(0.2), "lm-human-preferences code"),
    constant(
        "ppo",
        "value_clip",
        Number(0.2),
        "lm-human-preferences code",
    ),
    constant(
        "ppo",
        "whiten_advantages",
        Flag(true),
        "lm-human-preferences code",
    ),
    constant(
        "ppo",
        "no_eos_score",
        Number(-1.0),
        "lm-human-preferences code (penalty_reward_value)",
    ),
    constant(
        "ppo",
        "temperature",
        Number(0.7),
        "lm-human-preferences code",
    ),
    constant(
        "ppo",
        "optimizer.lr",
        Number(1.5e-5),
        "Stiennon et al. 2020, appendix B (1.3B; 6.7B: 7e-6)",
    ),
    constant(
        "ppo",
        "optimizer.schedule",
        Text("linear"),
        "Stiennon et al. 2020, appendix B",
    ),
    constant(
        "ppo",
        "optimizer.floor",
        Number(0.0),
        "lm-human-preferences code (linear to 0)",
    ),
];
