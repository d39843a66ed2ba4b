use super::*;
use crate::fixtures::{Pipeline, pipeline};
use recipe::plan::Task;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn names(stages: &[&StagePlan]) -> Vec<String> {
    stages.iter().map(|stage| stage.name.clone()).collect()
}

fn states(p: &Pipeline, moved: &[&str]) -> Result<Vec<State>, GraphError> {
    let moved = moved.iter().map(|&name| name.to_owned()).collect();
    Ok(survey(&p.plan, &p.run, &moved)?
        .into_iter()
        .map(|(_, state)| state)
        .collect())
}

fn set_lr(plan: &mut Plan, stage: usize, lr: f64) {
    match &mut plan.stages[stage].task {
        Task::Pretrain(pretrain) => pretrain.train.optimizer.lr = lr,
        Task::Sft(sft) => sft.train.optimizer.lr = lr,
        other => panic!("no learning rate in {other:?}"),
    }
}

#[test]
fn selections_bring_what_they_need() -> Outcome {
    let p = pipeline()?;
    let selected = |wanted| select(&p.plan, &wanted).map(|stages| names(&stages));
    assert_eq!(selected(Selection::All)?.len(), 4);
    assert_eq!(selected(Selection::Only("sft".into()))?, ["sft"]);
    let until = selected(Selection::Until("pretrain".into()))?;
    assert_eq!(until, ["corpus", "tokenizer", "pretrain"]);
    assert_eq!(selected(Selection::Kind("pretrain".into()))?, until);
    let error = selected(Selection::Until("stf".into()))
        .err()
        .ok_or("must fail")?;
    assert!(
        error
            .to_string()
            .contains("corpus, tokenizer, pretrain, sft"),
        "{error}"
    );
    let error = selected(Selection::Kind("ppo".into()))
        .err()
        .ok_or("must fail")?;
    assert!(
        error
            .to_string()
            .contains("import, pretrain, sft, tokenizer"),
        "{error}"
    );
    Ok(())
}

#[test]
fn states_follow_the_folders() -> Outcome {
    let p = pipeline()?;
    assert_eq!(states(&p, &[])?, vec![State::ToDo; 4]);
    p.finish("corpus")?;
    p.finish("tokenizer")?;
    p.interrupt("pretrain", 400)?;
    let expected = [State::Done, State::Done, State::Continue(400), State::ToDo];
    assert_eq!(states(&p, &[])?, expected);
    p.finish("pretrain")?;
    p.finish("sft")?;
    assert_eq!(states(&p, &[])?, vec![State::Done; 4]);
    std::fs::remove_dir_all(p.run.stage("sft").final_dir())?;
    assert_eq!(states(&p, &[])?[3], State::ToDo);
    Ok(())
}

#[test]
fn a_change_is_refused_by_name_until_restarted() -> Outcome {
    let mut p = pipeline()?;
    for stage in ["corpus", "tokenizer", "pretrain"] {
        p.finish(stage)?;
    }
    p.interrupt("sft", 3)?;
    set_lr(&mut p.plan, 2, 5e-4);
    set_lr(&mut p.plan, 3, 5e-4);
    let moved = BTreeSet::new();
    let survey_now = survey(&p.plan, &p.run, &moved)?;
    let error = admit(&p.plan, &Selection::All, &survey_now)
        .err()
        .ok_or("must fail")?;
    let message = error.to_string();
    for part in ["`pretrain`", "`sft`", "train.optimizer.lr: 0.001 -> 0.0005"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(
        message.contains("`--restart pretrain`"),
        "one restart suffices: {message}"
    );
    admit(&p.plan, &Selection::Until("tokenizer".into()), &survey_now)?;
    let moved = restarted(&p.plan, &["pretrain".into()])?;
    assert_eq!(moved, ["pretrain".to_owned(), "sft".to_owned()].into());
    admit(&p.plan, &Selection::All, &survey(&p.plan, &p.run, &moved)?)?;
    Ok(())
}

#[test]
fn execution_is_outside_the_hash() -> Outcome {
    let mut p = pipeline()?;
    p.finish("corpus")?;
    p.finish("tokenizer")?;
    p.finish("pretrain")?;
    p.plan.stages[2].execution.micro_batch = 2;
    p.plan.stages[2].execution.save_every = 7;
    assert_eq!(states(&p, &[])?[2], State::Done);
    p.plan.seed = 2;
    assert!(matches!(&states(&p, &[])?[0], State::Changed(keys) if keys[0].key == "seed"));
    Ok(())
}

#[test]
fn a_stage_alone_needs_its_parents_done() -> Outcome {
    let p = pipeline()?;
    p.finish("corpus")?;
    p.finish("tokenizer")?;
    let wanted = Selection::Only("sft".into());
    let states = survey(&p.plan, &p.run, &BTreeSet::new())?;
    let error = admit(&p.plan, &wanted, &states).err().ok_or("must fail")?;
    assert!(
        error.to_string().contains("`sft` needs `pretrain`"),
        "{error}"
    );
    p.finish("pretrain")?;
    admit(
        &p.plan,
        &wanted,
        &survey(&p.plan, &p.run, &BTreeSet::new())?,
    )?;
    Ok(())
}
