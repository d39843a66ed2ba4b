//! A model whose blocks are divided: a group of one rank takes the same way as one of many.

use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use tch::no_grad;
use torch_ext::{Group, Member, Store};

use super::*;

/// The one rank of a group of its own.
fn group() -> Rc<Group> {
    let timeout = Duration::from_secs(20);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let store = Store::open("127.0.0.1", port, true, timeout).expect("a store");
    let member = Member {
        rank: 0,
        size: 1,
        device: Device::Cpu,
        timeout,
    };
    Rc::new(Group::open(&store, "all", member).expect("a group"))
}

/// Parameters of blocks that are in memory: those that are not begin at their offset from nothing.
fn here(model: &Model) -> usize {
    let of_blocks = model.params().iter();
    let of_blocks = of_blocks.filter(|(name, _)| model::block_of(name).is_some());
    of_blocks
        .filter(|(_, tensor)| tensor.data_ptr().addr() > 1 << 20)
        .count()
}

#[test]
fn a_divided_model_computes_the_same_and_has_its_blocks_only_meanwhile() {
    let group = group();
    for whole in models() {
        let label = format!("{:?}", whole.shape.family);
        let divided = whole.deep_copy().sharded(Rc::clone(&group));
        assert!(here(&whole) > 0 && here(&divided) == 0, "{label}");
        let input = padded(&rows(), false);
        let expected = no_grad(|| whole.hidden(&input));
        {
            let _whole = divided.whole().expect("one rank");
            assert_equal(&label, &no_grad(|| divided.hidden(&input)), &expected);
        }
        assert_eq!(here(&divided), 0, "{label}");
        for checkpointing in [false, true] {
            let options = RecordOptions {
                checkpointing,
                ..RECORD
            };
            let gradients = taped(&whole, &input, options);
            for (name, grad) in taped(&divided, &input, options) {
                assert_equal(&format!("{label} {name}"), &grad, &gradients[&name]);
            }
            assert_eq!(here(&divided), 0, "{label}");
        }
    }
}

#[test]
fn a_copy_of_a_divided_model_is_another_model() {
    let (group, model) = (group(), &models()[0]);
    let divided = model.deep_copy().sharded(group);
    let mut copy = divided.deep_copy();
    for slice in copy.kept_slices().values_mut() {
        let _ = slice.g_mul_scalar_(0.0);
    }
    let input = padded(&rows(), false);
    let hidden = |model: &Model| {
        let _whole = model.whole().expect("one rank");
        no_grad(|| model.hidden(&input))
    };
    let expected = no_grad(|| model.hidden(&input));
    assert_equal("the original", &hidden(&divided), &expected);
    assert!((hidden(&copy) - &expected).abs().max().double_value(&[]) > 1e-3);
    copy.copy_from(model);
    assert_equal("taken over", &hidden(&copy), &expected);
}

#[test]
#[should_panic(expected = "is read where it is held whole")]
fn a_divided_model_that_nobody_holds_is_not_read() {
    let divided = models().remove(0).sharded(group());
    let _ = divided.hidden(&padded(&rows(), false));
}
