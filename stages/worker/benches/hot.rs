//! The hot parts one by one, on the CPU: `make bench-parts`. Criterion compares a run with the one before.
//!
//! Shapes: the models and batches of `rlhf bench`.

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use datasets::pack::TokenRows;
use datasets::{Split, Text, Tokenizer, dataset_file, write};
use generation::{Request, SamplingOptions};
use model::{Head, Model};
use recipe::families::Sizes;
use recipe::plan::{OptimizerPlan, Schedule};
use recipe::shape::Family;
use runtime::files::WholeFolder;
use runtime::seeds;
use tch::{Device, Kind, Tensor};
use torch_ext::Cuts;
use trainer::{LmOptions, LmRow, Stepper, lm_backward};

const VOCAB: usize = 4096;

fn model() -> Model {
    let shape = Family::Gpt2.shape(&Sizes {
        vocab_size: VOCAB,
        max_positions: 256,
        layers: 4,
        width: 256,
        heads: 4,
    });
    Model::init(&shape, Head::Token, 1, Device::Cpu, Kind::Float)
}

fn ids(row: u64, count: u64) -> Vec<u32> {
    let id = |t| (seeds::key(1, "bench", row, t) % VOCAB as u64) as u32;
    (0..count).map(id).collect()
}

/// About a megabyte of words.
fn texts() -> Vec<Text> {
    let word = |row, t| format!("w{}", seeds::key(2, "bench", row, t) % 3000);
    let text = |row| (0..400).map(|t| word(row, t)).collect::<Vec<_>>().join(" ");
    (0..450)
        .map(|row| Text {
            id: format!("d{row}"),
            text: text(row),
            source: "made".to_owned(),
        })
        .collect()
}

fn tokenizer(texts: &[Text]) -> Tokenizer {
    let texts = texts.iter().map(|row| row.text.clone());
    Tokenizer::train(texts, 2048).expect("a tokenizer")
}

fn data(c: &mut Criterion) {
    let texts = texts();
    let tokenizer = tokenizer(&texts);
    let bytes: usize = texts.iter().map(|row| row.text.len()).sum();
    let mut group = c.benchmark_group("data");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("tokenise", |b| {
        b.iter(|| {
            for row in &texts {
                black_box(tokenizer.encode(&row.text).expect("ids"));
            }
        });
    });
    let dir = tempfile::tempdir().expect("a folder");
    let file = dataset_file(dir.path(), datasets::DatasetKind::Text, Split::Train);
    write(&file, &texts).expect("texts");
    group.bench_function("tokenise and pack", |b| {
        b.iter(|| {
            let cache = tempfile::tempdir().expect("a folder");
            let build =
                |cache: &Path| TokenRows::build(dir.path(), Split::Train, &tokenizer, 128, cache);
            black_box(build(cache.path()).expect("rows").num_rows())
        });
    });
    group.finish();
}

fn sampling(c: &mut Criterion) {
    let model = model();
    let mut group = c.benchmark_group("sample");
    let requests: Vec<Request> = (0..64)
        .map(|episode| Request {
            prompt_ids: ids(episode, 32),
            episode,
        })
        .collect();
    let options = SamplingOptions {
        max_new_tokens: 16,
        ..SamplingOptions::default()
    };
    group.throughput(Throughput::Elements(64 * 16));
    group.bench_function("64 responses of 16 tokens", |b| {
        b.iter(|| generation::generate(&model, &requests, &options).expect("samples"));
    });
    let logits_bv = Tensor::randn([64, VOCAB as i64], (Kind::Float, Device::Cpu));
    let uniform: Vec<f64> = (0..64)
        .map(|row| seeds::uniform(1, "bench", row, 0))
        .collect();
    group.throughput(Throughput::Elements(64));
    for (name, top_k, top_p) in [
        ("a token of 64 rows", None, None),
        ("a token of 64 rows, top-k 50", Some(50), None),
        ("a token of 64 rows, top-p 0.9", None, Some(0.9)),
    ] {
        let cuts = Cuts {
            temperature: 0.8,
            top_k,
            top_p,
        };
        group.bench_function(name, |b| {
            b.iter(|| torch_ext::sample(&logits_bv, Some(&uniform), &cuts).expect("tokens"));
        });
    }
    group.finish();
}

fn advantages(c: &mut Criterion) {
    let options = (Kind::Double, Device::Cpu);
    let [rewards_br, values_br] = [0, 1].map(|_| Tensor::randn([64, 64], options));
    let mask_br = Tensor::ones([64, 64], options);
    c.bench_function("GAE of 64 responses of 64 tokens", |b| {
        b.iter(|| ppo::advantage::gae(&rewards_br, &values_br, &mask_br, 1.0, 0.95));
    });
}

fn training(c: &mut Criterion) {
    let model = model();
    let plan = OptimizerPlan {
        lr: 1e-9,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.1,
        schedule: Schedule::Constant,
        floor: 0.0,
        warmup: 0,
        warmup_from: 0.0,
        clip: 1.0,
    };
    let mut stepper = Stepper::new(&model, &plan, 1 << 40);
    let rows: Vec<LmRow> = (0..16).map(|row| LmRow::plain(ids(row, 128))).collect();
    let options = LmOptions {
        micro_batch: 16,
        pad_id: 1,
        coef: 1.0,
        checkpointing: false,
        dropout: 0.0,
        dropout_key: 0,
    };
    let mut group = c.benchmark_group("train");
    let mut step = 0;
    group.throughput(Throughput::Elements(16 * 128));
    group.bench_function("forward and backward pass, 16 x 128", |b| {
        b.iter(|| lm_backward(&model, &mut stepper, &rows, &options).expect("a loss"));
    });
    group.throughput(Throughput::Elements(model.num_params() as u64));
    group.bench_function("norm, clipping and optimizer step", |b| {
        b.iter(|| {
            // The gradients that an update frees are there again.
            for tensor in model.params().values() {
                (tensor * 1e-3).sum(tensor.kind()).backward();
            }
            step += 1;
            stepper.update(step).expect("an update")
        });
    });
    group.finish();
}

fn checkpoint(c: &mut Criterion) {
    let model = model();
    let dir = tempfile::tempdir().expect("a folder");
    let mut group = c.benchmark_group("checkpoint");
    group.throughput(Throughput::Bytes(4 * model.num_params() as u64));
    group.bench_function("write, synced", |b| {
        b.iter(|| {
            let target = dir.path().join("checkpoint");
            let folder = WholeFolder::create(&target).expect("a folder");
            model.save(folder.path()).expect("a model");
            folder.commit().expect("whole");
        });
    });
    group.finish();
}

fn brief() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
}

criterion_group! {
    name = parts;
    config = brief();
    targets = data, sampling, advantages, training, checkpoint
}
criterion_main!(parts);
