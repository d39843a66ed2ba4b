//! Tests of the command line.

use super::*;
use clap::CommandFactory;

#[test]
fn the_command_line_is_consistent_and_every_command_shows_an_example() {
    let mut command = Cli::command();
    command.build();
    command.clone().debug_assert();
    for sub in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        let help = sub
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(
            help.contains(&format!("  rlhf {}", sub.get_name())),
            "{}",
            sub.get_name()
        );
    }
}

#[test]
fn values_out_of_bounds_are_refused() {
    let generate = ["rlhf", "generate", "--model", "m"];
    let refused = [
        &["--prompt", "x", "--top-p", "1.5"][..],
        &["--prompt", "x", "--temperature", "0"],
        &["--prompt", "x", "--num-samples", "0"],
        &["--prompt", "x", "--greedy", "--top-k", "3"],
        &["--prompt", "x", "--data", "f"],
        &[],
    ];
    for rest in refused {
        assert!(
            Cli::try_parse_from(generate.iter().chain(rest)).is_err(),
            "{rest:?}"
        );
    }
    for refused in [
        &["rlhf", "eval"][..],
        &["rlhf", "eval", "retrieval", "--model", "m"],
        &["rlhf", "eval", "retrieval", "--lengths", "64"],
        &[
            "rlhf",
            "eval",
            "retrieval",
            "--model",
            "m",
            "--lengths",
            "0",
        ],
    ] {
        assert!(Cli::try_parse_from(refused).is_err(), "{refused:?}");
    }
    let retrieval = "rlhf eval retrieval --model m --lengths 64,128 --at-least 0.5";
    assert!(Cli::try_parse_from(retrieval.split(' ')).is_ok());
    let run = ["rlhf", "run", "c.toml", "--set", "a.b = 1", "--set", "x"];
    assert!(Cli::try_parse_from(run).is_err());
    let Ok(Cli {
        command: Command::Run(args),
    }) = Cli::try_parse_from(&run[..5])
    else {
        panic!("must parse")
    };
    assert_eq!(args.source.overrides, [("a.b".to_owned(), "1".to_owned())]);
}
