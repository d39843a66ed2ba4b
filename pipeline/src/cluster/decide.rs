//! Which stages get a job.

use std::collections::BTreeMap;

use recipe::plan::StagePlan;

/// What becomes of a stage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It is done.
    Done,
    /// A job that was submitted before will run it, or runs it.
    Live(String),
    /// It gets a new job.
    New,
}

/// Runs whose stages fare alike: their jobs can be one array for each stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wave {
    /// The runs' places in the submission.
    pub runs: Vec<usize>,
    /// Stages in the plan's order.
    pub fates: Vec<(String, Fate)>,
}

/// What becomes of stages (with the word whether each is done) in the plan's order. `live` is the job that will run a
/// stage, if one can: it is of no use where what it waits for gets a new job.
pub fn fates(
    stages: &[(&StagePlan, bool)],
    live: &dyn Fn(&str) -> Option<String>,
) -> Vec<(String, Fate)> {
    let mut fates: Vec<(String, Fate)> = Vec::new();
    for (stage, done) in stages {
        let waits_for_new = stage
            .parents()
            .any(|parent| fates.contains(&(parent, Fate::New)));
        let fate = match live(&stage.name) {
            _ if *done => Fate::Done,
            Some(job) if !waits_for_new => Fate::Live(job),
            _ => Fate::New,
        };
        fates.push((stage.name.clone(), fate));
    }
    fates
}

/// The runs in waves. Slurm waits for the same place of another array, so arrays of one wave have the same places.
pub fn waves(fates_of_runs: Vec<Vec<(String, Fate)>>) -> Vec<Wave> {
    let mut runs_of_fates: BTreeMap<Vec<(String, Fate)>, Vec<usize>> = BTreeMap::new();
    for (run, fates) in fates_of_runs.into_iter().enumerate() {
        runs_of_fates.entry(fates).or_default().push(run);
    }
    let mut waves: Vec<Wave> = runs_of_fates
        .into_iter()
        .map(|(fates, runs)| Wave { runs, fates })
        .collect();
    waves.sort_by(|a, b| a.runs.cmp(&b.runs));
    waves
}

impl Wave {
    /// The stages that get new jobs.
    pub fn new_stages(&self) -> impl Iterator<Item = &str> {
        self.fates
            .iter()
            .filter(|(_, fate)| *fate == Fate::New)
            .map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::pipeline;

    fn of(done: &[&str], live: &[&str]) -> Result<Vec<Fate>, Box<dyn std::error::Error>> {
        let plan = pipeline()?.plan;
        let stages: Vec<(&StagePlan, bool)> = plan
            .stages
            .iter()
            .map(|stage| (stage, done.contains(&stage.name.as_str())))
            .collect();
        let fates = fates(&stages, &|stage| {
            live.contains(&stage).then(|| "7".to_owned())
        });
        Ok(fates.into_iter().map(|(_, fate)| fate).collect())
    }

    #[test]
    fn what_is_done_or_will_be_gets_no_job() -> Result<(), Box<dyn std::error::Error>> {
        use Fate::{Done, Live, New};
        let live = || Live("7".to_owned());
        // corpus, tokenizer (of corpus), pretrain (of both), sft (of corpus and pretrain)
        assert_eq!(of(&[], &[])?, [New, New, New, New]);
        assert_eq!(of(&["corpus"], &["tokenizer"])?, [Done, live(), New, New]);
        // The job of what waits for a stage that failed never begins.
        assert_eq!(
            of(&["corpus", "tokenizer"], &["sft"])?,
            [Done, Done, New, New]
        );
        assert_eq!(
            of(&["corpus", "tokenizer"], &["pretrain", "sft"])?,
            [Done, Done, live(), live()]
        );
        Ok(())
    }

    #[test]
    fn runs_that_fare_alike_make_one_wave() {
        let fates = |first: Fate| vec![("a".to_owned(), first), ("b".to_owned(), Fate::New)];
        let waves = waves(vec![fates(Fate::New), fates(Fate::Done), fates(Fate::New)]);
        let runs: Vec<&[usize]> = waves.iter().map(|wave| &wave.runs[..]).collect();
        assert_eq!(runs, [&[0, 2][..], &[1]]);
        assert_eq!(waves[0].new_stages().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(waves[1].new_stages().collect::<Vec<_>>(), ["b"]);
    }
}
