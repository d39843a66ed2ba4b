//! `rlhf plan`: checks everything, prints every resolved number, starts nothing.

use std::fmt::Write as _;

use recipe::plan::Plan;
use recipe::stage_numbers;

use super::print;
use crate::checks::check_inputs;
use crate::cli::PlanArgs;
use crate::failure::{Failure, Outcome};
use crate::hub::Models;

/// Prints the plan.
///
/// # Errors
/// A configuration or an input that is wrong.
pub fn run(args: &PlanArgs) -> Outcome {
    let plan = Models::default().plan(&args.source, None)?;
    for stage in &plan.stages {
        check_inputs(stage).map_err(Failure::usage)?;
    }
    // A reader that has seen enough (`| head`) is no failure.
    let _ = print(table(&plan).trim_end());
    Ok(())
}

fn table(plan: &Plan) -> String {
    let preset = plan
        .preset
        .as_ref()
        .map(|preset| format!(", preset {preset}"));
    let mut text = format!(
        "{}: {} stages, seed {}{}\nfrom {}\n",
        plan.name,
        plan.stages.len(),
        plan.seed,
        preset.unwrap_or_default(),
        plan.source.display()
    );
    for stage in &plan.stages {
        let numbers = stage_numbers(plan, stage);
        let width = numbers
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        let _ = writeln!(text, "\n{} ({})", stage.name, stage.task.kind());
        for (name, value) in numbers {
            let _ = writeln!(text, "  {name:<width$}  {value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::pipeline;

    #[test]
    fn every_stage_is_in_the_table_with_its_numbers() -> Result<(), Box<dyn std::error::Error>> {
        let plan = pipeline()?.plan;
        let text = table(&plan);
        for stage in &plan.stages {
            assert!(text.contains(&format!("\n{} ({})\n", stage.name, stage.task.kind())));
            for (name, value) in stage_numbers(&plan, stage) {
                assert!(
                    text.contains(&name) && text.contains(&value),
                    "{name}: {value}"
                );
            }
        }
        Ok(())
    }
}
