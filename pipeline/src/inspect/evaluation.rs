//! `rlhf eval`'s findings: base, SFT and PPO on the same held-out prompts, and whether the text was
//! sacrificed for the score. They lie in the PPO stage's folder, so that a restart of the stage
//! moves them aside with it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use recipe::request::{Conversation, EvalModels, EvalReport, ModelReport};
use runtime::files::{FileError, read_json, write_json};
use serde::{Deserialize, Serialize};

use super::table::{Align, Table};

/// What was found, with what it is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Hash of what was evaluated, and how.
    pub inputs: String,
    /// The pipeline's seed.
    pub seed: u64,
    /// Held-out pairs that the reward model orders rightly, as a share.
    pub reward_accuracy: Option<f64>,
    /// What the worker measured.
    #[serde(flatten)]
    pub measured: EvalReport,
}

impl Evaluation {
    /// Where the findings about the policy of this stage lie.
    pub fn path(stage_root: &Path) -> PathBuf {
        stage_root.join("eval.json")
    }

    /// The findings about a stage's policy; `None` where it was not evaluated.
    ///
    /// # Errors
    /// A file that cannot be read or understood.
    pub fn read(stage_root: &Path) -> Result<Option<Self>, FileError> {
        let path = Self::path(stage_root);
        path.exists().then(|| read_json(&path)).transpose()
    }

    /// Writes them into the stage's folder.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, stage_root: &Path) -> Result<(), FileError> {
        write_json(&Self::path(stage_root), self)
    }

    /// What a policy has to fulfil for its gain to count, and whether it does.
    pub fn checks(&self) -> Vec<(&'static str, bool)> {
        let EvalModels { base: _, sft, ppo } = &self.measured.models;
        vec![
            (
                "gold score at least 0.4 above SFT's",
                self.gain().is_none_or(|gain| gain >= 0.4),
            ),
            ("KL to SFT at most 8 nats", ppo.kl <= 8.0),
            (
                "distinct-2 at least 0.9 x SFT's",
                ppo.distinct_2 >= 0.9 * sft.distinct_2,
            ),
            (
                "repeated trigrams at most 2 points above SFT's",
                ppo.repeated_trigrams <= sft.repeated_trigrams + 0.02,
            ),
            (
                "most frequent reply at most 2 %",
                ppo.most_frequent_share <= 0.02,
            ),
            (
                "base perplexity of the replies at most 1.5 x SFT's",
                ppo.base_perplexity <= 1.5 * sft.base_perplexity,
            ),
            (
                "EOS rate at most 1 point below SFT's",
                ppo.eos_rate >= sft.eos_rate - 0.01,
            ),
            (
                "true prompt preferred as often as for SFT, within 3 points",
                ppo.true_prompt_preferred >= sft.true_prompt_preferred - 0.03,
            ),
        ]
    }

    /// The gold score's rise from SFT to PPO.
    fn gain(&self) -> Option<f64> {
        let EvalModels { sft, ppo, .. } = &self.measured.models;
        Some(ppo.gold? - sft.gold?)
    }

    /// One sentence each: the gain and its price.
    pub fn summary(&self) -> Vec<String> {
        let EvalModels { sft, ppo, .. } = &self.measured.models;
        let gold = self
            .gain()
            .map(|gain| format!("gold: {gain:+.3} by PPO, at a KL of {:.2} nats", ppo.kl));
        let losses = ppo.pretraining_loss.zip(sft.pretraining_loss);
        let tax = losses.map(|(after, before)| {
            let rise = 100.0 * (after / before - 1.0);
            format!("pretraining loss: {rise:+.2} % by PPO")
        });
        let accuracy = self
            .reward_accuracy
            .map(|share| format!("reward model: {} of held-out pairs right", percent(share)));
        [gold, tax, accuracy].into_iter().flatten().collect()
    }

    /// The measurements, a column a model.
    pub fn table(&self) -> Table {
        let EvalModels { base, sft, ppo } = &self.measured.models;
        let title = format!("{} held-out prompts, one reply each", ppo.samples);
        let mut table = Table::new(&[
            (&title, Align::Left),
            ("base", Align::Right),
            ("SFT", Align::Right),
            ("PPO", Align::Right),
        ]);
        let mut row = |name: &str, show: &dyn Fn(&ModelReport) -> String| {
            let cells = [name.to_owned(), show(base), show(sft), show(ppo)];
            table.rows.push(cells.into());
        };
        row("gold score (± standard error)", &|m| {
            let both = m.gold.zip(m.gold_se);
            both.map_or("no gold rule".to_owned(), |(gold, se)| {
                format!("{gold:.3} ± {se:.3}")
            })
        });
        row("KL to SFT, nats", &|m| format!("{:.2}", m.kl));
        row("replies that end (EOS)", &|m| percent(m.eos_rate));
        row("tokens per reply", &|m| format!("{:.1}", m.length));
        row("distinct-2", &|m| format!("{:.3}", m.distinct_2));
        row("repeated trigrams", &|m| percent(m.repeated_trigrams));
        row("most frequent reply", &|m| percent(m.most_frequent_share));
        row("base perplexity of the replies", &|m| {
            format!("{:.1}", m.base_perplexity)
        });
        row("base prefers the true prompt", &|m| {
            percent(m.true_prompt_preferred)
        });
        row("pretraining loss, nats per token", &|m| {
            m.pretraining_loss
                .map_or("no text".to_owned(), |loss| format!("{loss:.3}"))
        });
        table
    }

    /// Everything, as text; `rule` is repeated under the titles.
    pub fn to_text(&self, rule: char) -> String {
        let mut text = self.table().to_text(rule) + "\n";
        for (name, holds) in self.checks() {
            let _infallible = writeln!(text, "  {} {name}", if holds { "ok  " } else { "NOT " });
        }
        text.push('\n');
        for sentence in self.summary() {
            let _infallible = writeln!(text, "  {sentence}");
        }
        for Conversation { prompt, sft, ppo } in &self.measured.conversations {
            let _infallible = write!(text, "\n  user  {prompt}\n  SFT   {sft}\n  PPO   {ppo}\n");
        }
        text
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::evaluation;

    #[test]
    fn each_check_can_fail() {
        let good = evaluation();
        assert!(good.checks().iter().all(|(_, holds)| *holds));
        let mut bad = good.clone();
        let ppo = &mut bad.measured.models.ppo;
        (ppo.gold, ppo.kl, ppo.distinct_2) = (Some(0.6), 8.1, 0.71);
        (ppo.repeated_trigrams, ppo.most_frequent_share) = (0.03, 0.021);
        (ppo.base_perplexity, ppo.eos_rate) = (151.0, 0.68);
        ppo.true_prompt_preferred = 0.56;
        assert!(bad.checks().iter().all(|(_, holds)| !*holds));
        assert_eq!(bad.to_text('-').matches("NOT ").count(), 8);
    }

    #[test]
    fn the_text_shows_numbers_gain_and_conversations() {
        let text = evaluation().to_text('-');
        for part in [
            "0.700 ± 0.010",
            "gold: +0.500 by PPO, at a KL of 3.00 nats",
            "pretraining loss: +1.00 % by PPO",
            "reward model: 78.0 % of held-out pairs right",
            "user  hello <you>",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn it_is_found_where_it_was_written() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        assert_eq!(super::Evaluation::read(dir.path())?, None);
        evaluation().write(dir.path())?;
        assert_eq!(super::Evaluation::read(dir.path())?, Some(evaluation()));
        Ok(())
    }
}
