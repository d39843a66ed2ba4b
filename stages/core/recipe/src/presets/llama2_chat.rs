//! Llama 2-Chat: Touvron et al. 2023 (arXiv 2307.09288); numbers of the 7B and 13B models.

use super::Setting::{Integer, Number, Pair, Text};
use super::{Constant, constant};

pub(super) const CONSTANTS: &[Constant] = &[
    constant(
        "reward",
        "batch",
        Integer(512),
        "Touvron et al. 2023, 3.2.2 (pairs; one pair a prompt)",
    ),
    constant("reward", "epochs", Integer(1), "Touvron et al. 2023, 3.2.2"),
    constant(
        "reward",
        "optimizer.lr",
        Number(1e-5),
        "Touvron et al. 2023, 3.2.2 (70B: 5e-6)",
    ),
    constant(
        "reward",
        "optimizer.schedule",
        Text("cosine"),
        "Touvron et al. 2023, 3.2.2",
    ),
    constant(
        "reward",
        "optimizer.floor",
        Number(0.1),
        "Touvron et al. 2023, 3.2.2",
    ),
    constant(
        "reward",
        "optimizer.warmup",
        Integer(5),
        "Touvron et al. 2023, 3.2.2 (3 % of the steps, at least 5; ours: the least)",
    ),
    constant(
        "ppo",
        "iterations",
        Integer(400),
        "Touvron et al. 2023, 3.2.3 (200 to 400; ours: the most)",
    ),
    constant("ppo", "batch", Integer(512), "Touvron et al. 2023, 3.2.3"),
    constant(
        "ppo",
        "minibatch",
        Integer(64),
        "Touvron et al. 2023, 3.2.3",
    ),
    constant(
        "ppo",
        "inner_epochs",
        Integer(1),
        "Touvron et al. 2023, 3.2.3 (one step a minibatch)",
    ),
    constant(
        "ppo",
        "kl.coef",
        Number(0.01),
        "Touvron et al. 2023, 3.2.3 (7B and 13B; 34B and 70B: 0.005)",
    ),
    constant("ppo", "clip", Number(0.2), "Touvron et al. 2023, 3.2.3"),
    constant(
        "ppo",
        "optimizer.lr",
        Number(1e-6),
        "Touvron et al. 2023, 3.2.3",
    ),
    constant(
        "ppo",
        "optimizer.betas",
        Pair(0.9, 0.95),
        "Touvron et al. 2023, 3.2.3",
    ),
    constant(
        "ppo",
        "optimizer.eps",
        Number(1e-5),
        "Touvron et al. 2023, 3.2.3",
    ),
    constant(
        "ppo",
        "optimizer.weight_decay",
        Number(0.1),
        "Touvron et al. 2023, 3.2.3",
    ),
    constant(
        "ppo",
        "optimizer.clip",
        Number(1.0),
        "Touvron et al. 2023, 3.2.3",
    ),
    constant(
        "ppo",
        "optimizer.schedule",
        Text("constant"),
        "Touvron et al. 2023, 3.2.3",
    ),
];
