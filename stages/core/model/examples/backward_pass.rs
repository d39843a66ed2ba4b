//! What does the block-by-block backward pass cost against a single autograd graph?
//!
//! One thread, and its time on the processor, so that other work on the machine hardly counts (Linux).
//!
//! `cargo run --release -p model --example backward_pass` (figures: CONTRIBUTING.md).

use model::{Head, Input, Model, RecordOptions, response_logprobs};
use recipe::families::Sizes;
use recipe::shape::Family;
use tch::{Device, Kind, Tensor};

const ROUNDS: usize = 12;

fn main() {
    torch_ext::set_threads(1);
    let shape = Family::Gpt2.shape(&Sizes {
        vocab_size: 2048,
        max_positions: 128,
        layers: 4,
        width: 256,
        heads: 4,
    });
    let model = Model::init(&shape, Head::Token, 1, Device::Cpu, Kind::Float);
    model.set_trainable(true);
    let input = Input::dense(Tensor::randint(2048, [16, 128], (Kind::Int64, Device::Cpu)));
    let loss =
        |hidden: &Tensor| -response_logprobs(&model, hidden, &input.ids_bt, 1, 1.0).mean(None);
    let taped = |checkpointing| {
        let options = RecordOptions {
            checkpointing,
            dropout: 0.0,
            dropout_key: 0,
        };
        let passes = model.record(&input, &options).and_then(|(hidden, tape)| {
            loss(&hidden).backward();
            tape.backward(&model)
        });
        if let Err(error) = passes {
            panic!("{error}");
        }
    };
    let single = || loss(&model.hidden(&input)).backward();
    let variants: [(&str, &dyn Fn()); 3] = [
        ("single graph", &single),
        ("block by block, graphs kept", &|| taped(false)),
        ("block by block, checkpointing", &|| taped(true)),
    ];
    // Interleaved, so that other work on the machine meets all of them alike.
    let mut times = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        for ((_, run), times) in variants.iter().zip(&mut times) {
            model.zero_grad();
            let start = processor_seconds();
            run();
            if round > 0 {
                times.push(processor_seconds() - start);
            }
        }
    }
    for ((name, _), mut times) in variants.iter().zip(times) {
        times.sort_by(f64::total_cmp);
        println!(
            "{name:32} {:6.1} ms (fastest {:.1})",
            times[ROUNDS / 2] * 1e3,
            times[0] * 1e3
        );
    }
}

/// Seconds that this thread has spent on a processor.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text
        .split(' ')
        .next()
        .and_then(|number| number.parse().ok());
    let nanoseconds: f64 = nanoseconds.unwrap_or(f64::NAN);
    nanoseconds * 1e-9
}
