//! What a pickle of weights is made of.

use std::rc::Rc;

use safetensors::Dtype;

/// Most dimensions of a tensor. A few bytes name a list again and again: without a bound each would
/// cost its whole length.
pub(super) const MAX_DIMS: usize = 16;

/// An object of a pickle; parts of it are elsewhere in the [`Heap`].
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Object {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    // Shared: a few bytes of a pickle name the same text as often as they like.
    Text(Rc<str>),
    Bytes(Vec<u8>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(TensorRef),
    /// Where a list of arguments begins.
    Mark,
}

/// The names that a file of weights may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

/// Numbers that lie in a row, in the file's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) dtype: Dtype,
    pub(super) key: Rc<str>,
    pub(super) numel: i64,
}

/// A tensor: a view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorRef {
    pub(super) storage: Storage,
    pub(super) offset: i64,
    pub(super) dims: Vec<i64>,
    pub(super) strides: Vec<i64>,
}

/// An object's place in the heap.
pub(super) type Id = usize;

/// All objects of a pickle. Objects refer to each other by place: the nesting of a hostile file costs
/// no stack, and cycles are harmless.
#[derive(Default)]
pub(super) struct Heap(Vec<Object>);

impl std::ops::Index<Id> for Heap {
    type Output = Object;

    fn index(&self, id: Id) -> &Object {
        &self.0[id]
    }
}

impl Heap {
    pub(super) fn add(&mut self, object: Object) -> Id {
        self.0.push(object);
        self.0.len() - 1
    }

    pub(super) fn get_mut(&mut self, id: Id) -> &mut Object {
        &mut self.0[id]
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        match &self[id] {
            Object::Int(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match &self[id] {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The numbers of a list of at most [`MAX_DIMS`].
    pub(super) fn ints(&self, id: Id) -> Option<Vec<i64>> {
        match &self[id] {
            Object::Tuple(items) | Object::List(items) if items.len() <= MAX_DIMS => {
                items.iter().map(|item| self.int(*item)).collect()
            }
            _ => None,
        }
    }
}
