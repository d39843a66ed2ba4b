//! The numbers that `rlhf plan` prints for a stage that trains on fixed data.

use crate::arithmetic::{final_learning_rate, weight_bytes};
use crate::memory::{Held, Loss, Passes, Site};
use crate::numbers::{HOST_MEMORY, Numbers, bytes, entry, grouped, merged_bytes, number, peaks};
use crate::plan::{
    Duration, Execution, LoraPlan, Objective, Plan, Quantization, Source, StagePlan, Task,
    TrainPlan,
};
use crate::shape::ModelShape;
use crate::tensors::Head;

/// A model being trained.
pub(crate) struct Training<'a> {
    pub(crate) shape: &'a ModelShape,
    pub(crate) head: Head,
    pub(crate) lora: Option<&'a LoraPlan>,
    pub(crate) quantize: Option<Quantization>,
    pub(crate) execution: &'a Execution,
    pub(crate) train: &'a TrainPlan,
    /// Tokens of a sequence.
    pub(crate) context: usize,
    /// Sequences in one element of the batch (reward: the responses of a prompt).
    pub(crate) rows: usize,
    /// Bytes of an attention mask for a sequence, where one must exist.
    mask: u64,
}

/// What a supervised stage trains; `None` for other stages.
pub(crate) fn training_of<'a>(plan: &Plan, stage: &'a StagePlan) -> Option<Training<'a>> {
    let execution = &stage.execution;
    Some(match &stage.task {
        Task::Pretrain(task) => {
            let longest = task.objective.longest_row(task.context);
            Training {
                shape: &task.model,
                head: Head::Token,
                lora: None,
                quantize: None,
                execution,
                train: &task.train,
                context: longest,
                rows: 1,
                mask: match task.objective {
                    Objective::Causal | Objective::Masked => 0,
                    // Who sees whom differs from row to row.
                    Objective::Infill => execution.dtype.bytes() * (longest * longest) as u64,
                },
            }
        }
        Task::Sft(task) => Training {
            shape: &task.shape,
            head: Head::Token,
            lora: task.lora.as_ref(),
            quantize: task.quantize,
            execution,
            train: &task.train,
            context: task.context,
            rows: 1,
            mask: 0,
        },
        Task::Reward(task) => Training {
            shape: &task.shape,
            head: Head::Scalar,
            lora: task.lora.as_ref(),
            quantize: task.quantize,
            execution,
            train: &task.train,
            context: task.context,
            rows: responses(plan, &task.data),
            mask: 0,
        },
        Task::Import(_) | Task::Tokenizer(_) | Task::Label(_) | Task::Ppo(_) => return None,
    })
}

/// Responses per prompt, where a label stage of the plan says it; else two.
fn responses(plan: &Plan, data: &Source) -> usize {
    let Source::Stage { name } = data else {
        return 2;
    };
    match plan.stage(name).map(|stage| &stage.task) {
        Some(Task::Label(label)) => label.responses,
        _ => 2,
    }
}

/// What a supervised stage will cost.
pub(crate) fn supervised(training: &Training<'_>) -> Numbers {
    let Training {
        shape,
        head,
        lora,
        quantize,
        execution,
        train,
        ..
    } = *training;
    let tokens_per_update = training.tokens_per_update() as f64;
    let flops_per_update = training.flops_per_update();
    let parameters = match head {
        Head::Token => shape.num_parameters(),
        Head::Scalar => shape.num_parameters_scalar(),
    };
    let mut numbers = vec![entry("parameters", grouped(parameters))];
    if lora.is_some() {
        let trained = shape.num_trainable(head, lora);
        numbers.push(entry("trained parameters", grouped(trained)));
    }
    numbers.extend([
        entry(
            "tokens per update, at most",
            grouped(tokens_per_update as u64),
        ),
        entry(
            "FLOPs per update, at most",
            format!("{flops_per_update:.3e}"),
        ),
    ]);
    match train.duration {
        Duration::Steps(steps) => {
            numbers.push(entry("updates", grouped(steps)));
            numbers.push(entry(
                "tokens, at most",
                grouped((tokens_per_update * steps as f64) as u64),
            ));
            numbers.push(entry(
                "FLOPs, at most",
                format!("{:.3e}", flops_per_update * steps as f64),
            ));
        }
        Duration::Epochs(epochs) => {
            numbers.push(entry(
                "updates",
                format!("{epochs} epochs, counted once the data is there"),
            ));
        }
    }
    numbers.push(entry(
        "last learning rate",
        number(final_learning_rate(&train.optimizer)),
    ));
    numbers.extend(peaks(|site| supervised_bytes(training, site)));
    if let Some(host) = quantize.map(|_| weight_bytes(parameters, execution.dtype)) {
        numbers.push(entry(HOST_MEMORY, bytes(host)));
    }
    numbers
}

impl<'a> Training<'a> {
    pub(crate) fn held(&self, site: Site) -> Held<'a> {
        Held {
            shape: self.shape,
            head: self.head,
            lora: self.lora,
            quantize: self.quantize,
            execution: self.execution,
            site,
        }
    }

    /// At most.
    pub(crate) fn tokens_per_update(&self) -> usize {
        self.train.batch * self.rows * self.context
    }

    /// At most.
    pub(crate) fn flops_per_update(&self) -> f64 {
        let forward = self.shape.forward_flops_per_token(self.context);
        let per_token = self
            .shape
            .training_flops_per_token(forward, self.context, self.lora);
        self.tokens_per_update() as f64 * per_token
    }
}

/// What stays, and the largest of an update, an evaluation, a reward model's normalisation, and the merged weights of
/// `final/`.
pub(crate) fn supervised_bytes(training: &Training<'_>, site: Site) -> u64 {
    let Training {
        shape,
        head,
        lora,
        quantize,
        execution,
        context,
        rows,
        ..
    } = *training;
    let of_rank = site.rows(training.train.batch);
    let micro_batch = execution.micro_batch.min(of_rank);
    let tokens = micro_batch * rows * context;
    let held = training.held(site);
    let loss = match head {
        Head::Token => Loss::Tokens,
        Head::Scalar => Loss::Scalar,
    };
    let passes = Passes {
        tokens,
        loss,
        on_gradients: of_rank > micro_batch,
        only: of_rank <= micro_batch,
    };
    let mask = training.mask * micro_batch as u64;
    // Whatever the batch.
    let rows_evaluated = execution.micro_batch * rows;
    let evaluated = held.evaluating_bytes(rows_evaluated * context, loss)
        + training.mask * execution.micro_batch as u64;
    let normalised = match head {
        Head::Token => 0,
        Head::Scalar => held.scoring_bytes(tokens, Loss::Scalar),
    };
    let parameters = match head {
        Head::Token => shape.num_parameters(),
        Head::Scalar => shape.num_parameters_scalar(),
    };
    let merged = lora.map_or(0, |_| {
        merged_bytes(parameters, execution.dtype, quantize) + held.whole_blocks_bytes()
    });
    let updated = held.update_bytes(&passes) + mask;
    let most = updated.max(evaluated).max(normalised).max(merged);
    held.model_bytes() + most
}
