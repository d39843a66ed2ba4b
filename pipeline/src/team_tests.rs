use super::*;

const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

fn of(ranks: usize, nodes: &Nodes, variables: &[(&str, &str)]) -> Result<Team, TeamError> {
    Team::of_nodes(ranks, nodes, PATIENCE, &|name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

#[test]
fn ranks_are_counted_over_machines() -> Result<(), TeamError> {
    let nodes = Nodes {
        count: Some(2),
        this: Some(1),
        master: Some("node1:29500"),
    };
    let team = of(4, &nodes, &[])?;
    assert_eq!((team.here, team.first, team.size), (4, 4, 8));
    assert!(!team.leads());
    let places = team.places()?;
    let ranks: Vec<usize> = places.iter().map(|place| place.rank).collect();
    assert_eq!(ranks, [4, 5, 6, 7]);
    assert!(places.iter().all(|p| p.host == "node1" && p.port == 29_500));
    Ok(())
}

#[test]
fn one_machine_takes_a_free_port_for_all() -> Result<(), TeamError> {
    let places = of(2, &Nodes::default(), &[])?.places()?;
    assert!(places[0].port > 0 && places[0].port == places[1].port);
    assert_eq!(places[1].host, LOOPBACK);
    Ok(())
}

#[test]
fn a_step_of_slurm_says_what_the_command_does_not() -> Result<(), TeamError> {
    let step = [
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_NODES", "2"),
        ("SLURM_NODEID", "1"),
        ("SLURM_STEP_NODELIST", "gpu[03-04]"),
        ("SLURM_JOB_ID", "41"),
    ];
    let team = of(2, &Nodes::default(), &step)?;
    assert_eq!((team.first, team.size), (2, 4));
    assert_eq!(team.master, Some(("gpu03".to_owned(), 20_041)));
    // The script of a job sees its variables, and is no step.
    let alone = of(2, &Nodes::default(), &step[1..])?;
    assert_eq!((alone.first, alone.size, alone.master), (0, 2, None));
    Ok(())
}

#[test]
fn a_launch_for_each_task_is_refused_and_a_named_master_holds() {
    let mut step = vec![
        ("SLURM_STEP_ID", "0"),
        ("SLURM_STEP_NUM_NODES", "2"),
        ("SLURM_STEP_NUM_TASKS", "16"),
        ("SLURM_NODEID", "0"),
        ("SLURM_STEP_NODELIST", "gpu[03-04]"),
        ("SLURM_JOB_ID", "41"),
    ];
    let error = of(8, &Nodes::default(), &step).expect_err("16 launches");
    let words = error.to_string();
    for word in [
        "16 tasks on 2 nodes",
        "srun --ntasks-per-node=1 rlhf launch --ranks 8",
    ] {
        assert!(words.contains(word), "{words}");
    }
    step[2].1 = "2";
    step.push(("MASTER_ADDR", "10.0.0.3"));
    let team = of(8, &Nodes::default(), &step).expect("a launch for each node");
    assert_eq!(team.master, Some(("10.0.0.3".to_owned(), 20_041)));
    step.push(("MASTER_PORT", "29500"));
    let team = of(8, &Nodes::default(), &step).expect("a launch for each node");
    assert_eq!(team.master, Some(("10.0.0.3".to_owned(), 29_500)));
    step.pop();
    step.push(("MASTER_PORT", "http"));
    let error = of(8, &Nodes::default(), &step).expect_err("no port");
    assert!(error.to_string().contains("MASTER_PORT=http"), "{error}");
}

#[test]
fn each_process_needs_a_gpu_that_is_seen() -> Result<(), TeamError> {
    let team = of(2, &Nodes::default(), &[])?;
    for visible in ["", "0", "-1", "0,", "1,-1,2"] {
        let error = team.admit_gpus("auto", Some(visible)).expect_err(visible);
        assert!(error.to_string().contains("--ranks 2"), "{error}");
        team.admit_gpus("cpu", Some(visible))?;
        Team::alone().admit_gpus("auto", Some(visible))?;
    }
    team.admit_gpus("cuda", Some("GPU-1,GPU-2"))?;
    team.admit_gpus("auto", None)
}

#[test]
fn what_makes_no_sense_is_said() {
    let nodes = |count, rank, master| Nodes {
        count: Some(count),
        this: Some(rank),
        master,
    };
    let cases = [
        (nodes(2, 2, Some("a:1")), "--node-rank 2 of --nodes 2"),
        (nodes(2, 0, None), "where is the first machine?"),
        (
            nodes(2, 0, Some("node1")),
            "--master node1: expected HOST:PORT",
        ),
        (nodes(2, 0, Some("node1:x")), "--master node1:x"),
    ];
    for (nodes, expected) in cases {
        let error = of(1, &nodes, &[]).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}
