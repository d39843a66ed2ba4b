//! What a stage does in one of its rounds (an update, an iteration of PPO, all of a label stage), on one rank.

use super::cost::{Decoding, Seconds, Share};
use super::machine::Machine;
use crate::memory::{Held, Site};
use crate::numbers::sampler;
use crate::plan::{Duration, Execution, LabelPlan, Plan, PpoPlan, StagePlan, Task};
use crate::ppo_memory::{judge, policy, value};
use crate::ppo_numbers::{scoring_flops, training_flops};
use crate::supervised_numbers::{Training, training_of};

/// A stage's rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rounds {
    /// Of one of them.
    pub seconds: Seconds,
    /// Tokens of all ranks in one, at most; of PPO those of prompts and responses.
    pub tokens: f64,
    /// How many; `None` where the data says it (epochs).
    pub count: Option<u64>,
}

/// `None` for a stage without a model.
pub(crate) fn rounds(
    plan: &Plan,
    stage: &StagePlan,
    site: Site,
    machine: &Machine,
) -> Option<Rounds> {
    Some(match &stage.task {
        Task::Import(_) | Task::Tokenizer(_) => return None,
        Task::Label(task) => labelling(task, &stage.execution, site, machine),
        Task::Ppo(task) => ppo(task, &stage.execution, site, machine),
        Task::Pretrain(_) | Task::Sft(_) | Task::Reward(_) => {
            supervised(&training_of(plan, stage)?, site, machine)
        }
    })
}

/// Passes that a rank makes of its rows.
fn passes(rows: usize, execution: &Execution) -> usize {
    rows.div_ceil(execution.micro_batch.min(rows))
}

fn supervised(training: &Training<'_>, site: Site, machine: &Machine) -> Rounds {
    let rows = site.rows(training.train.batch);
    let share = Share {
        flops: training.flops_per_update() / site.ranks as f64,
        passes: passes(rows, training.execution),
    };
    Rounds {
        seconds: training.held(site).update_seconds(machine, share),
        tokens: training.tokens_per_update() as f64,
        count: match training.train.duration {
            Duration::Steps(steps) => Some(steps),
            Duration::Epochs(_) => None,
        },
    }
}

fn labelling(task: &LabelPlan, execution: &Execution, site: Site, machine: &Machine) -> Rounds {
    let decoding = Decoding {
        rows: site.rows(task.episodes()),
        alike: task.responses,
        at_once: execution.sample_batch,
        prompt: task.sampling.max_prompt_tokens,
        new: task.sampling.max_new_tokens,
    };
    let tokens = task.episodes() * (decoding.prompt + decoding.new);
    Rounds {
        seconds: sampler(task, execution, site).decoding_seconds(machine, decoding),
        tokens: tokens as f64,
        count: Some(1),
    }
}

/// An iteration: episodes are sampled, scored by every model, and learned from in a number of updates.
fn ppo(task: &PpoPlan, execution: &Execution, site: Site, machine: &Machine) -> Rounds {
    let actor = policy(task, execution, site);
    let critic = value(task, execution, site);
    let rows = site.rows(task.batch);
    let decoding = Decoding {
        rows,
        alike: 1,
        at_once: execution.sample_batch,
        prompt: task.sampling.max_prompt_tokens,
        new: task.sampling.max_new_tokens,
    };
    let judges = task.reward.iter().map(|source| judge(&actor, source));
    let models = std::iter::once(actor).chain(judges).chain([critic]);
    // A head on the trunk has no operations of its own, and is left out here.
    let scored = models
        .zip(scoring_flops(task))
        .map(|(model, flops): (Held<'_>, f64)| model.scoring_seconds(machine, flops * rows as f64));
    let collecting = scored.fold(actor.decoding_seconds(machine, decoding), |sum, seconds| {
        sum + seconds
    });
    let rows = site.rows(task.minibatch);
    let of_episodes = passes(rows, execution);
    let texts = task
        .ptx
        .as_ref()
        .map_or(0, |ptx| rows * ptx.sequences_per_episode);
    let of_text = if texts > 0 {
        passes(texts, execution)
    } else {
        0
    };
    let [actors, critics] = training_flops(task);
    let share = |flops: f64, passes| Share {
        flops: flops * rows as f64,
        passes,
    };
    let mut update = actor.update_seconds(machine, share(actors, of_episodes + of_text));
    if task.vf_coef.is_none() {
        update = update + critic.update_seconds(machine, share(critics, of_episodes));
    }
    let updates = (task.batch / task.minibatch * task.inner_epochs) as f64;
    Rounds {
        seconds: collecting + update * updates,
        tokens: (task.batch * (decoding.prompt + decoding.new)) as f64,
        count: Some(task.iterations),
    }
}
