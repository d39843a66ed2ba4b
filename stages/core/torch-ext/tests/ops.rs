//! The operators against their definitions, and their errors' words.

use tch::{Device, Kind, Tensor};
use torch_ext::{AdamWStep, TorchError, backward, free_grad, fused_adamw, token_logprobs};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

fn gap(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn adamw_follows_its_definition() {
    let options = AdamWStep {
        lr: 0.1,
        beta1: 0.8,
        beta2: 0.9,
        eps: 1e-3,
        weight_decay: 0.2,
    };
    tch::manual_seed(3);
    let params = [Tensor::randn([4, 3], F64), Tensor::randn([5], F64)];
    let zeros = || params.iter().map(Tensor::zeros_like).collect::<Vec<_>>();
    let (m, v) = (zeros(), zeros());
    let (mut expected, mut em, mut ev) = (params.each_ref().map(Tensor::copy), zeros(), zeros());
    for step in 1..=3 {
        let grads = params.each_ref().map(Tensor::randn_like);
        let count = Tensor::from(f64::from(step)).to_kind(Kind::Float);
        let counts = [count.shallow_clone(), count];
        fused_adamw(&params, &grads, &m, &v, &counts, &options).expect("update");
        for i in 0..2 {
            em[i] = &em[i] * 0.8 + &grads[i] * 0.2;
            ev[i] = &ev[i] * 0.9 + grads[i].square() * 0.1;
            let m_hat = &em[i] / (1.0 - 0.8_f64.powi(step));
            let v_hat = &ev[i] / (1.0 - 0.9_f64.powi(step));
            let decayed = &expected[i] * (1.0 - 0.1 * 0.2);
            expected[i] = decayed - m_hat / (v_hat.sqrt() + 1e-3) * 0.1;
            assert!(gap(&params[i], &expected[i]) < 1e-12, "step {step}");
            assert!(gap(&m[i], &em[i]) < 1e-12 && gap(&v[i], &ev[i]) < 1e-12);
        }
        assert_eq!(
            counts[0].int64_value(&[]),
            i64::from(step),
            "the caller counts"
        );
    }
}

#[test]
fn adamw_refuses_what_does_not_fit() {
    let options = AdamWStep {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.9,
        eps: 1e-8,
        weight_decay: 0.0,
    };
    let one = || [Tensor::zeros([2], F64)];
    let error = fused_adamw(&one(), &[], &one(), &one(), &one(), &options).expect_err("lists");
    assert_eq!(
        error.to_string(),
        "fused_adamw: grads has 0 tensors, expected 1"
    );
    let none = Tensor::zeros([2], F64).set_requires_grad(true).grad();
    let error =
        fused_adamw(&one(), &[none], &one(), &one(), &one(), &options).expect_err("no grad");
    assert!(
        error
            .to_string()
            .contains("grads is undefined, expected Double [2]"),
        "{error}"
    );
    let count = [Tensor::from(1.0_f32)];
    let short = [Tensor::zeros([1], F64)];
    let error = fused_adamw(&one(), &short, &one(), &one(), &count, &options).expect_err("shapes");
    let expected = "grads is Double [1] on Cpu, expected Double [2] on Cpu, contiguous";
    assert_eq!(error.to_string(), format!("fused_adamw: {expected}"));
    let expanded = [Tensor::zeros([1], F64).expand([2], false)];
    assert!(fused_adamw(&one(), &one(), &expanded, &one(), &count, &options).is_err());
    assert!(
        fused_adamw(&one(), &one(), &one(), &one(), &one(), &options).is_err(),
        "steps"
    );
    // libtorch's own refusal: integers have no fused kernel.
    let whole = || [Tensor::zeros([2], (Kind::Int64, Device::Cpu))];
    let error = fused_adamw(&whole(), &whole(), &whole(), &whole(), &count, &options);
    let error = error.expect_err("integers");
    assert!(
        matches!(
            error,
            TorchError::Libtorch {
                operation: "fused_adamw",
                ..
            }
        ),
        "{error}"
    );
    assert!(
        !error.to_string().contains("Exception raised from"),
        "no C++ stack: {error}"
    );
}

#[test]
fn backward_starts_from_given_gradients_and_accumulates() {
    let x = Tensor::from_slice(&[1.0, 2.0, 3.0]).set_requires_grad(true);
    let seed = Tensor::from_slice(&[1.0, 10.0, 100.0]);
    for times in 1..=2 {
        let (y, z) = (x.square(), &x * 3.0);
        backward(&[&y, &z], &[&seed, &seed]).expect("backward");
        let expected = (x.detach() * 2.0 + 3.0) * &seed * f64::from(times);
        assert!(gap(&x.grad(), &expected) < 1e-12);
    }
    let detached = Tensor::from_slice(&[1.0]);
    let error = backward(&[&detached], &[&detached])
        .expect_err("no graph")
        .to_string();
    assert!(
        error.starts_with("libtorch: backward: ") && error.contains("grad"),
        "{error}"
    );
    assert!(backward(&[&detached], &[]).is_err());
}

#[test]
fn token_logprobs_are_a_log_softmax_in_every_chunking() {
    tch::manual_seed(5);
    let hidden_nd = Tensor::randn([7, 4], F64).set_requires_grad(true);
    let weight_vd = Tensor::randn([9, 4], F64).set_requires_grad(true);
    let targets_n = Tensor::randint(9, [7], (Kind::Int64, Device::Cpu));
    let seed = Tensor::randn([7], F64);
    let logits = hidden_nd.matmul(&weight_vd.tr()) / 0.6;
    let direct = logits
        .log_softmax(-1, None)
        .gather(-1, &targets_n.unsqueeze(-1), false)
        .squeeze();
    backward(&[&direct], &[&seed]).expect("backward");
    let expected = [hidden_nd.grad().copy(), weight_vd.grad().copy()];
    for chunk in [1, 3, 7, 100] {
        hidden_nd.shallow_clone().zero_grad();
        weight_vd.shallow_clone().zero_grad();
        let ours = token_logprobs(&hidden_nd, &weight_vd, &targets_n, 0.6, chunk).expect("forward");
        assert!(gap(&ours, &direct) < 1e-12);
        backward(&[&ours], &[&seed]).expect("backward");
        assert!(gap(&hidden_nd.grad(), &expected[0]) < 1e-12);
        assert!(gap(&weight_vd.grad(), &expected[1]) < 1e-12);
    }
    let error = token_logprobs(&hidden_nd, &weight_vd, &seed, 1.0, 4).expect_err("type");
    assert!(
        error
            .to_string()
            .contains("targets_n is Double [7] on Cpu, expected Int64 [7] on Cpu"),
        "{error}"
    );
    for outside in [-1, 9] {
        let targets_n = targets_n.copy();
        let _ = targets_n.get(5).fill_(outside);
        let error = token_logprobs(&hidden_nd, &weight_vd, &targets_n, 1.0, 4).expect_err("range");
        let words = format!("target {outside} of row 1 of a vocabulary of 9");
        assert!(error.to_string().contains(&words), "{error}");
    }
    let error = token_logprobs(&hidden_nd, &hidden_nd.tr(), &targets_n, 1.0, 4).expect_err("width");
    assert!(
        error
            .to_string()
            .contains("[7, 4] beside a weight of [4, 7]"),
        "{error}"
    );
}

#[test]
fn a_gradient_that_was_freed_is_gone_for_every_handle() {
    let weight = Tensor::ones([3], F64).set_requires_grad(true);
    for factor in [2.0, 3.0] {
        (&weight * factor).sum(Kind::Double).backward();
        let held = weight.grad();
        free_grad(&weight.shallow_clone()).expect("freed");
        assert!(!weight.grad().defined());
        // Not added to the one that was freed, and who still holds that one keeps it.
        assert!(gap(&held, &Tensor::full([3], factor, F64)) < 1e-15);
    }
}

#[test]
fn the_loaded_libtorch_is_the_one_that_tch_expects() {
    assert_eq!(torch_ext::libtorch_version().expect("version"), "2.11.0");
    let dir = torch_ext::libtorch_dir().expect("folder");
    assert!(dir.join("libtorch_cpu.so").exists(), "{}", dir.display());
}

/// The CUDA library was built, and, once `libtorch_cuda.so` is loaded, all of its symbols are found.
#[test]
fn the_cuda_library_loads_or_is_not_needed() {
    match torch_ext::cuda::load() {
        Ok(None) => assert_eq!(torch_ext::num_cuda_devices(), 0),
        Ok(Some(cuda)) => {
            let versions = cuda.versions().expect("versions");
            assert!(versions.driver >= versions.runtime, "{versions:?}");
            let properties = cuda.properties(0).expect("device 0");
            assert!(
                properties.total_bytes > 0 && properties.capability.0 > 0,
                "{properties:?}"
            );
            let held = || cuda.memory(0).expect("memory");
            cuda.reset_peak(0).expect("reset");
            let before = held();
            drop(Tensor::zeros([1 << 20], (Kind::Float, Device::Cuda(0))));
            assert!(
                held().peak_bytes >= before.current_bytes + (4 << 20),
                "{:?}",
                held()
            );
            assert_eq!(held().current_bytes, before.current_bytes);
            cuda.synchronize(0).expect("synchronize");
            cuda.empty_cache().expect("empty");
        }
        Err(error) => panic!("{error}"),
    }
}
