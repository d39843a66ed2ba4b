//! Our VADER against the original program (`tests/golden/make_vader.py`).

use std::path::Path;

use judge::GoldRule;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    text: String,
    compound: f64,
}

#[test]
fn every_golden_sentence_has_the_score_of_the_original() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden/vader.jsonl");
    let lines = std::fs::read_to_string(&path).expect("tests/golden/vader.jsonl");
    let golden: Vec<Golden> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    assert!(golden.len() > 500, "only {} sentences", golden.len());
    let nonzero = golden
        .iter()
        .filter(|row| row.compound.abs() > 1e-4)
        .count();
    assert!(nonzero > 300, "only {nonzero} sentences with a sentiment");
    let wrong: Vec<String> = golden
        .iter()
        .filter(|row| (GoldRule::Vader.score(&row.text) - row.compound).abs() > 1e-4)
        .map(|row| {
            let ours = GoldRule::Vader.score(&row.text);
            format!("{:?}: {ours} instead of {}", row.text, row.compound)
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn papers_examples_keep_their_order() {
    let score = |text| GoldRule::Vader.score(text);
    assert!(
        score("VADER is smart, handsome, and funny!")
            > score("VADER is smart, handsome, and funny.")
    );
    assert!(
        score("VADER is very smart, handsome, and funny.")
            > score("VADER is smart, handsome, and funny.")
    );
    assert!(score("VADER is not smart, handsome, nor funny.") < 0.0);
    assert!(score("") == 0.0 && score(" \n") == 0.0);
}

#[test]
fn the_plan_names_the_same_rule() {
    assert_eq!(
        GoldRule::from(recipe::plan::GoldRule::Vader),
        GoldRule::Vader
    );
}
