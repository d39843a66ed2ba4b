use super::*;

fn response(rank: Option<i32>, rating: Option<f32>) -> Response {
    Response {
        content: "x".to_owned(),
        rank,
        rating,
        model: None,
    }
}

fn comparison(responses: Vec<Response>) -> Comparison {
    let prompt = vec![Message::new("user", "hi")];
    Comparison {
        id: "a".to_owned(),
        prompt,
        responses,
        labeler: None,
        pairs: None,
    }
}

#[test]
fn ranks_make_pairs_and_ties() {
    let ranks = [2, 1, 2, 3];
    let row = comparison(
        ranks
            .iter()
            .map(|&rank| response(Some(rank), Some(9.0)))
            .collect(),
    );
    let (mut pairs, ties) = row.ordered_pairs();
    pairs.sort_unstable();
    assert_eq!(pairs, [(0, 3), (1, 0), (1, 2), (1, 3), (2, 3)]);
    assert_eq!(ties, 1);
}

#[test]
fn ratings_decide_where_there_are_no_ranks() {
    let row = comparison(vec![response(None, Some(-1.0)), response(None, Some(0.5))]);
    assert_eq!(row.ordered_pairs(), (vec![(1, 0)], 0));
}

#[test]
fn explicit_pairs_override_ranks_even_in_circles() {
    let mut row = comparison((1..=3).map(|rank| response(Some(rank), None)).collect());
    let pair = |better, worse| Pair {
        better,
        worse,
        grade: None,
    };
    row.pairs = Some(vec![pair(2, 0), pair(0, 1), pair(1, 2)]);
    assert_eq!(row.ordered_pairs(), (vec![(2, 0), (0, 1), (1, 2)], 0));
}

#[test]
fn impossible_comparisons_are_refused() {
    let ranked = |rank| response(Some(rank), None);
    let cases = [
        (comparison(vec![ranked(1)]), "`responses` has 1 entry"),
        (
            comparison(vec![ranked(1), response(None, None)]),
            "given for 1 of 2",
        ),
        (
            comparison(vec![response(None, None), response(None, Some(1.0))]),
            "neither `pairs` nor",
        ),
        (
            comparison(vec![ranked(0), ranked(1)]),
            "is 0; ranks count from 1",
        ),
        (
            comparison(vec![
                response(None, Some(f32::NAN)),
                response(None, Some(1.0)),
            ]),
            "NaN",
        ),
    ];
    for (row, expected) in cases {
        let reason = row.check().expect_err(expected);
        assert!(reason.contains(expected), "{reason}");
    }
    let mut row = comparison(vec![ranked(1), ranked(2)]);
    row.pairs = Some(vec![Pair {
        better: 2,
        worse: 0,
        grade: None,
    }]);
    assert!(
        row.check()
            .expect_err("index")
            .contains("`pairs.better` is 2")
    );
}

#[test]
fn roles_and_emptiness_are_checked() {
    let row = |messages| Prompt {
        id: "a".to_owned(),
        messages,
    };
    assert!(
        row(vec![])
            .check()
            .expect_err("empty")
            .contains("`messages` is empty")
    );
    let error = row(vec![Message::new("bot", "x")])
        .check()
        .expect_err("role");
    assert!(
        error.contains("`bot`, not one of system, user, assistant"),
        "{error}"
    );
    let error = row(vec![Message::new("assistant", "x")])
        .check()
        .expect_err("answered");
    assert!(error.contains("nothing to answer"), "{error}");
    assert_eq!(row(vec![Message::new("user", "x")]).conversation(), "a");
}
