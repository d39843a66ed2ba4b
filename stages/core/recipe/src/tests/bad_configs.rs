//! Every mistake that can be made in a configuration, with the words that it is met with.

use super::{BASE, Project};

/// What is replaced in [`BASE`], by what, and the refusal.
type Case = (&'static str, &'static str, &'static str);

fn check(cases: &[Case]) {
    for (old, new, expected) in cases {
        assert!(BASE.contains(old), "{old:?} is not in the base");
        let refusal = Project::new(&BASE.replacen(old, new, 1)).refusal(&[]);
        assert_eq!(&refusal, expected, "{old:?} -> {new:?}");
    }
}

#[test]
fn keys() {
    check(&[
        (
            "[stages.sft]\nkind = \"sft\"\nmodel",
            "[stages.sft]\nkind = \"sft\"\nmodle",
            "pipeline.toml:36:1: stages.sft.modle: unknown key\n  hint: did you mean `model`? known keys here: kind, model, data, context, overlong, pretrain_data, pretrain_share, quantize, lora, rope, batch, steps, epochs, dropout, eval_every, eval_examples, nonfinite, optimizer, dtype, micro_batch, checkpointing, sharding, save_every, keep",
        ),
        (
            "optimizer = { lr = 1e-4 }",
            "optimizer = { learning_rate = 1e-4 }",
            "pipeline.toml:20:15: stages.ppo.optimizer.learning_rate: unknown key\n  hint: did you mean `lr`? known keys here: lr, betas, eps, weight_decay, schedule, floor, warmup, warmup_from, clip",
        ),
        (
            "reward = [{ model = \"stage:reward\" }]",
            "reward = [{ model = \"stage:reward\", wieght = 2 }]",
            "pipeline.toml:12:37: stages.ppo.reward[0].wieght: unknown key\n  hint: did you mean `weight`? known keys here: model, weight, quantize",
        ),
        (
            "seed = 1",
            "sead = 1\nstage = 2",
            "pipeline.toml:2:1: sead: unknown key\n  hint: did you mean `seed`? known keys here: name, seed, preset, tokenizer, stages, cluster\npipeline.toml:3:1: stage: unknown key\n  hint: did you mean `stages`? known keys here: name, seed, preset, tokenizer, stages, cluster",
        ),
        (
            "name = \"base\"",
            "",
            "pipeline.toml:1:1: name: missing key\n  hint: write name = \"...\"; the run folder is called after it",
        ),
        (
            "kind = \"sft\"\nmodel = \"stage:pretrain\"\n",
            "kind = \"sft\"\n",
            "pipeline.toml:34:9: stages.sft.model: missing key\n  hint: name a language model: model = \"stage:NAME\" (kind pretrain, sft, ppo), \"path:FOLDER\" or \"hub:ORG/NAME\"",
        ),
        (
            "kind = \"sft\"",
            "kind = \"stf\"",
            "pipeline.toml:35:8: stages.sft.kind: must be a kind of stage, is \"stf\"\n  hint: did you mean `sft`? known kinds: import, pretrain, sft, label, reward, ppo",
        ),
        (
            "kind = \"sft\"\n",
            "",
            "pipeline.toml:34:9: stages.sft.kind: missing key\n  hint: write kind = one of import, pretrain, sft, label, reward, ppo",
        ),
        (
            "[stages.corpus]",
            "[stages.logs]",
            "pipeline.toml:22:9: stages.logs: \"logs\" cannot be a stage's name\n  hint: use letters, digits, - and _; tokenizer, logs, lock, cluster are taken",
        ),
        (
            "name = \"base\"",
            "name = \"../base\"",
            "pipeline.toml:1:8: name: \"../base\" cannot be a folder's name\n  hint: use letters, digits, - and _: it names the run folder",
        ),
    ]);
}

#[test]
fn types() {
    check(&[
        (
            "steps = 100",
            "steps = \"100\"",
            "pipeline.toml:32:9: stages.pretrain.steps: must be a whole number of at least 1, is \"100\"\n  hint: write 100 without quotes",
        ),
        (
            "steps = 100",
            "steps = 100.0",
            "pipeline.toml:32:9: stages.pretrain.steps: must be a whole number of at least 1, is 100.0\n  hint: write 100 without a fraction",
        ),
        (
            "optimizer = { lr = 1e-4 }",
            "optimizer = 1e-4",
            "pipeline.toml:20:1: stages.ppo.optimizer: must be a table, is 0.0001\n  hint: write optimizer = { lr = ... }; known keys: lr, betas, eps, weight_decay, schedule, floor, warmup, warmup_from, clip",
        ),
        (
            "reward = [{ model = \"stage:reward\" }]",
            "reward = \"stage:reward\"",
            "pipeline.toml:12:1: stages.ppo.reward: must be a list of tables, is \"stage:reward\"\n  hint: write reward = [{ model = ... }]; known keys: model, weight, quantize",
        ),
        (
            "optimizer = { lr = 1e-4 }",
            "optimizer = { lr = 1e-4, betas = 0.9 }",
            "pipeline.toml:20:34: stages.ppo.optimizer.betas: must be two numbers, each a number at least 0 and below 1, is 0.9\n  hint: give two numbers, each a number at least 0 and below 1",
        ),
        (
            "minibatch = 8",
            "minibatch = 8\nwhiten_advantages = 1",
            "pipeline.toml:18:21: stages.ppo.whiten_advantages: must be true or false, is 1\n  hint: give true or false",
        ),
        (
            "minibatch = 8",
            "minibatch = 8\nema = true",
            "pipeline.toml:18:7: stages.ppo.ema: must be a number above 0 and below 1, or false to turn it off, is true\n  hint: give a number above 0 and below 1, or false to turn it off",
        ),
        (
            "seed = 1",
            "seed = 99999999999999999999",
            "pipeline.toml:2:8: not valid TOML: 99999999999999999999 does not fit 64 bits\n  hint: strings need quotes; a table starts with [stages.NAME]",
        ),
        (
            "epochs = 2",
            "epochs = 2\noverlong = \"cut\"",
            "pipeline.toml:40:12: stages.sft.overlong: must be one of \"error\", \"drop\", \"left\", is \"cut\"\n  hint: known words here: error, drop, left",
        ),
        (
            "format = \"synthetic\"",
            "format = \"cvs\"",
            "pipeline.toml:24:10: stages.corpus.format: unknown import format `cvs`\n  hint: known formats: chitchat, texts, demonstrations, comparisons, prompts, plain-text, synthetic, passkey",
        ),
    ]);
}

#[test]
fn bounds() {
    check(&[
        (
            "batch = 16\nepochs",
            "batch = 0\nepochs",
            "pipeline.toml:38:9: stages.sft.batch: must be a whole number of at least 1, is 0\n  hint: give a whole number of at least 1",
        ),
        (
            "steps = 100",
            "steps = 0",
            "pipeline.toml:32:9: stages.pretrain.steps: must be a whole number of at least 1, is 0\n  hint: give a whole number of at least 1",
        ),
        (
            "optimizer = { lr = 1e-4 }",
            "optimizer = { lr = -1e-4 }",
            "pipeline.toml:20:20: stages.ppo.optimizer.lr: must be a number above 0, is -0.0001\n  hint: give a number above 0",
        ),
        (
            "optimizer = { lr = 1e-4 }",
            "optimizer = { lr = inf }",
            "pipeline.toml:20:20: stages.ppo.optimizer.lr: must be a number above 0, is inf\n  hint: give a number above 0",
        ),
        (
            "epochs = 2",
            "epochs = 2\ndropout = 1",
            "pipeline.toml:40:11: stages.sft.dropout: must be a number at least 0 and below 1, is 1\n  hint: give a number at least 0 and below 1",
        ),
        (
            "format = \"synthetic\"",
            "format = \"synthetic\"\nheldout = 1.5",
            "pipeline.toml:25:11: stages.corpus.heldout: must be a number above 0 and below 1, is 1.5\n  hint: give a number above 0 and below 1",
        ),
        (
            "vocab_size = 300",
            "vocab_size = 100",
            "pipeline.toml:6:14: tokenizer.vocab_size: must be a whole number of at least 261, is 100\n  hint: give a whole number of at least 261",
        ),
        (
            "minibatch = 8",
            "minibatch = 8\nno_eos_penalty = 1\nno_eos_score = -1",
            "pipeline.toml:19:16: stages.ppo.no_eos_score: has no meaning beside no_eos_penalty\n  hint: keep one of the two",
        ),
        (
            "epochs = 2",
            "epochs = 2\nsteps = 3",
            "pipeline.toml:40:9: stages.sft.steps: steps and epochs are both set\n  hint: keep one of the two",
        ),
        (
            "epochs = 2\n",
            "",
            "pipeline.toml:34:9: stages.sft.steps: missing key\n  hint: write steps = updates, or epochs = passes over the data",
        ),
        (
            "labeler = { kind = \"gold\", rule = \"vader\" }",
            "labeler = { kind = \"gold\", rule = \"vader\" }\nresponses = 1",
            "pipeline.toml:48:13: stages.comparisons.responses: must be a whole number of at least 2, is 1\n  hint: give a whole number of at least 2",
        ),
    ]);
}

#[test]
fn numbers_that_do_not_fit_together() {
    check(&[
        (
            "minibatch = 8",
            "minibatch = 5",
            "pipeline.toml:17:13: stages.ppo.minibatch: must divide batch 32, is 5\n  hint: choose a divisor of 32, or change batch",
        ),
        (
            "minibatch = 8",
            "minibatch = 8\nmicro_batch = 16",
            "pipeline.toml:18:15: stages.ppo.micro_batch: must divide minibatch 8, is 16\n  hint: choose a divisor of 8, or change minibatch",
        ),
        (
            "batch = 16\nepochs",
            "batch = 16\nmicro_batch = 3\nepochs",
            "pipeline.toml:39:15: stages.sft.micro_batch: must divide batch 16, is 3\n  hint: choose a divisor of 16, or change batch",
        ),
        (
            "batch = 16\nepochs",
            "context = 100\nbatch = 16\nepochs",
            "pipeline.toml:38:11: stages.sft.context: must be at most the model's max_positions 64, is 100\n  hint: shorten it, or give the model more max_positions when it is pretrained",
        ),
        (
            "max_new_tokens = 16\noptimizer",
            "max_new_tokens = 40\noptimizer",
            "pipeline.toml:19:18: stages.ppo.max_new_tokens: max_prompt_tokens 32 and max_new_tokens 40 must be at most the model's max_positions 64 together, are 72\n  hint: shorten one of them, or give the model more max_positions when it is pretrained",
        ),
    ]);
}

#[test]
fn models_whose_numbers_do_not_fit_together() {
    check(&[
        (
            "heads = 4",
            "heads = 5",
            "pipeline.toml:29:61: stages.pretrain.model.heads: must divide the width 64, is 5\n  hint: choose a divisor of the width",
        ),
        (
            "heads = 4",
            "heads = 4, kv_heads = 3",
            "pipeline.toml:29:75: stages.pretrain.model.kv_heads: must divide the 4 heads, is 3\n  hint: choose a divisor of heads",
        ),
        (
            "heads = 4",
            "heads = 64",
            "pipeline.toml:29:61: stages.pretrain.model.heads: must leave an even number of a head's 1 numbers to be rotated, 64 leaves 1\n  hint: rotary positions rotate pairs of numbers",
        ),
        (
            "heads = 4",
            "heads = 4, vocab_size = 299",
            "pipeline.toml:29:77: stages.pretrain.model.vocab_size: must be at least the tokenizer's 300, is 299\n  hint: leave it out: the tokenizer says it",
        ),
        (
            "model = { family = \"llama\"",
            "model = { family = \"gpt1\", mlp_width = 100",
            "pipeline.toml:29:9: stages.pretrain.model: the config.json of family \"openai-gpt\" cannot say a model with these numbers\n  hint: the family's own: mlp_width = 256, norm_eps = 1e-5, kv_heads = 4",
        ),
        (
            "heads = 4",
            "heads = 4, mlp_width = 2000000",
            "pipeline.toml:29:76: stages.pretrain.model.mlp_width: must be at most 1048576, is 2000000\n  hint: no model of this size is computed; look for a slip in the number",
        ),
        (
            "layers = 2,",
            "layers = 1000000000,",
            "pipeline.toml:29:38: stages.pretrain.model.layers: must be at most 10000, is 1000000000\n  hint: no model of this size is computed; look for a slip in the number",
        ),
        (
            "model = { family = \"llama\"",
            "model = { family = \"opt\", positions = \"sinusoidal\"",
            "pipeline.toml:29:39: stages.pretrain.model.positions: must be one of \"learned\", is \"sinusoidal\"\n  hint: known words here: learned",
        ),
        (
            "model = { family = \"llama\"",
            "model = { family = \"gpt2\", window = 10",
            "pipeline.toml:29:37: stages.pretrain.model.window: has no meaning in family \"gpt2\"\n  hint: take family \"mistral\", \"gpt_neo\", \"qwen2\" or \"qwen3\" for a sliding window",
        ),
        (
            "model = { family = \"llama\"",
            "model = { family = \"gpt2\", rope_theta = 10",
            "pipeline.toml:29:41: stages.pretrain.model.rope_theta: has no meaning in this model of family \"gpt2\", whose positions are learned\n  hint: leave it out, or take a family with rotary positions, like \"llama\"",
        ),
        (
            "model = { family = \"llama\", layers = 2, width = 64, heads = 4 }",
            "model = { size = \"gpt2-125m\" }",
            "pipeline.toml:29:18: stages.pretrain.model.size: there is no size called \"gpt2-125m\"\n  hint: did you mean `gpt2-124m`? `rlhf model sizes` lists all",
        ),
    ]);
}

#[test]
fn pretraining_text_that_is_not_there_or_leaves_no_room() {
    check(&[
        (
            "pretrain_data = \"stage:corpus\"",
            "ptx = { coef = 1.0 }",
            "pipeline.toml:14:16: stages.ppo.ptx.coef: has no meaning without pretrain_data\n  hint: add pretrain_data = \"stage:NAME\", or leave ptx out",
        ),
        (
            "epochs = 2",
            "pretrain_share = 0.2\nepochs = 2",
            "pipeline.toml:39:18: stages.sft.pretrain_share: has no meaning without pretrain_data\n  hint: add pretrain_data = \"stage:NAME\", or leave pretrain_share out",
        ),
        (
            "epochs = 2",
            "pretrain_data = \"stage:corpus\"\npretrain_share = 0.01\nepochs = 2",
            "pipeline.toml:40:18: stages.sft.pretrain_share: must leave both kinds of rows in a batch of 16, 0.01 leaves no text\n  hint: choose a larger batch or another share",
        ),
    ]);
}

#[test]
fn references() {
    check(&[
        (
            "model = \"stage:pretrain\"",
            "model = \"stage:sft\"",
            "pipeline.toml:36:9: stages.sft.model: the stage refers to itself: \"stage:sft\"\n  hint: refer to a stage that can run before this one",
        ),
        (
            "model = \"stage:pretrain\"",
            "model = \"stage:pretran\"",
            "pipeline.toml:36:9: stages.sft.model: there is no stage called \"pretran\"\n  hint: did you mean `pretrain`? known stages: tokenizer, ppo, corpus, pretrain, sft, comparisons, reward",
        ),
        (
            "model = \"stage:pretrain\"",
            "model = \"stage:ppo\"",
            "pipeline.toml:36:9: stages.sft.model: stages refer to each other in a circle: ppo -> sft -> ppo\n  hint: refer to a stage that can run before this one",
        ),
        (
            "reward = [{ model = \"stage:reward\" }]",
            "reward = [{ model = \"stage:sft\" }]",
            "pipeline.toml:12:21: stages.ppo.reward[0].model: must be a reward model, is \"stage:sft\", a stage of kind \"sft\"\n  hint: stages of kind reward: \"stage:reward\"",
        ),
        (
            "data = \"stage:comparisons\"",
            "data = \"stage:corpus\"",
            "pipeline.toml:52:8: stages.reward.data: must be a dataset of comparisons, is \"stage:corpus\", an import stage of format \"synthetic\"\n  hint: stages of kind label, import: \"stage:comparisons\"",
        ),
        (
            "reward = [{ model = \"stage:reward\" }]",
            "reward = []",
            "pipeline.toml:12:10: stages.ppo.reward: must name at least one reward model, is []\n  hint: write reward = [{ model = \"stage:NAME\", weight = 1.0 }]",
        ),
        (
            "model = \"stage:pretrain\"",
            "model = \"pretrain\"",
            "pipeline.toml:36:9: stages.sft.model: no such file or folder: DIR/pretrain\n  hint: did you mean \"stage:pretrain\"?",
        ),
        (
            "format = \"synthetic\"",
            "format = \"chitchat\"\npath = \"data/none.json\"",
            "pipeline.toml:25:8: stages.corpus.path: no such file or folder: DIR/data/none.json\n  hint: relative paths start from DIR",
        ),
        (
            "model = \"stage:pretrain\"",
            "model = \"hub:org/name/more\"",
            "pipeline.toml:36:9: stages.sft.model: \"org/name/more\" is no repository's name\n  hint: write hub:ORG/NAME or hub:ORG/NAME@REVISION, as on the model's page",
        ),
        (
            "seed = 1",
            "preset = \"instruct-gpt\"",
            "pipeline.toml:2:10: preset: there is no preset called \"instruct-gpt\"\n  hint: did you mean `instructgpt`? known presets: instructgpt, stiennon2020, nplus, llama2-chat",
        ),
        (
            "[tokenizer]\nkind = \"bpe\"\nvocab_size = 300\ndata = \"stage:corpus\"\n",
            "",
            "pipeline.toml:22:9: stages.pretrain: a pretrain stage needs the table [tokenizer]\n  hint: add [tokenizer] with kind = \"bpe\", vocab_size and data, or kind = \"path\" and path",
        ),
    ]);
}

#[test]
fn a_faulty_stage_hides_no_other_fault() {
    let text = BASE
        .replacen("steps = 100", "steps = 0", 1)
        .replacen("vocab_size = 300", "vocab_size = 3", 1)
        .replacen(
            "format = \"synthetic\"",
            "format = \"synthetic\"\nprompt_turns = 0",
            1,
        );
    let refusal = Project::new(&text).refusal(&[]);
    assert_eq!(
        refusal,
        "pipeline.toml:25:16: stages.corpus.prompt_turns: must be a whole number of at least 1, is 0\n  hint: give a whole number of at least 1"
    );
    let text = BASE.replacen("steps = 100", "steps = 0", 1).replacen(
        "[stages.sft]",
        "[stages.other]\nkind = \"import\"\nformat = \"chitchat\"\n\n[stages.sft]",
        1,
    );
    let refusal = Project::new(&text).refusal(&[]);
    assert_eq!(refusal.matches("hint:").count(), 2, "{refusal}");
}
