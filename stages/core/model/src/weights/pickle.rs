//! Python's pickles, as far as files of weights need them: a machine that builds dictionaries, tuples,
//! numbers, text and the places of tensors. It imports and calls nothing; whatever else a pickle names
//! is refused by its name.
//!
//! Source: `pickletools.py` of Python 3 (opcodes of protocols 0 to 5), `torch/_utils.py` (what rebuilds
//! a tensor).

use std::collections::HashMap;

use safetensors::Dtype;

use super::heap::{Global, Heap, Id, MAX_DIMS, Object, Storage, TensorRef};

/// Why a pickle is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It names something that is no part of a tensor.
    Named(String),
    /// It is no whole pickle.
    Malformed(String),
}

/// Reads one pickle from the beginning of `bytes`: its objects, the outermost one, and the bytes that
/// it took.
pub(super) fn read(bytes: &[u8]) -> Result<(Heap, Id, usize), Refusal> {
    let mut machine = Machine {
        bytes,
        position: 0,
        heap: Heap::default(),
        stack: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        let opcode = machine.byte()?;
        if opcode == b'.' {
            let root = machine.pop()?;
            return Ok((machine.heap, root, machine.position));
        }
        machine.step(opcode)?;
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    heap: Heap,
    stack: Vec<Id>,
    memo: HashMap<usize, Id>,
}

impl Machine<'_> {
    fn step(&mut self, opcode: u8) -> Result<(), Refusal> {
        match opcode {
            b'(' => self.push(Object::Mark),
            // What is built onto an object (`b`) is attributes (`_metadata`): nothing of weights.
            b'0' | b'b' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'N' => self.push(Object::None),
            0x88 | 0x89 => self.push(Object::Bool(opcode == 0x88)),
            b'J' | b'K' | b'M' | 0x8a | 0x8b | b'G' => self.push_number(opcode)?,
            b'X' | 0x8c | 0x8d | b'U' | b'T' | b'B' | b'C' | 0x8e => self.push_chars(opcode)?,
            b')' => self.push(Object::Tuple(Vec::new())),
            b']' => self.push(Object::List(Vec::new())),
            b'}' => self.push(Object::Dict(Vec::new())),
            b't' | b'l' => {
                let items = self.pop_to_mark()?;
                self.push(if opcode == b't' {
                    Object::Tuple(items)
                } else {
                    Object::List(items)
                });
            }
            0x85..=0x87 => {
                let len = usize::from(opcode - 0x84);
                let start = self.stack.len().checked_sub(len).ok_or_else(underflow)?;
                let items = self.stack.split_off(start);
                self.push(Object::Tuple(items));
            }
            b'd' | b's' | b'u' | b'a' | b'e' => self.fill(opcode)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.remember(opcode)?,
            b'c' | 0x93 => self.push_global(opcode)?,
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Object::Storage(storage));
            }
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let object = self.rebuild(callee, arguments)?;
                self.push(object);
            }
            0x80 => drop(self.byte()?),
            0x95 => drop(self.take(8)?),
            // INST: a class and its call in one.
            b'i' => {
                let name = format!("{}.{}", self.line()?, self.line()?);
                return Err(Refusal::Named(name));
            }
            other => return Err(malformed(format!("opcode {other:#04x} in a pickle"))),
        }
        Ok(())
    }

    fn take(&mut self, len: usize) -> Result<&[u8], Refusal> {
        let rest = &self.bytes[self.position..];
        let taken = rest
            .get(..len)
            .ok_or_else(|| malformed("the pickle ends early"))?;
        self.position += len;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Refusal> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian number of `len` bytes, at most 8.
    fn unsigned(&mut self, len: usize) -> Result<u64, Refusal> {
        let mut word = [0; 8];
        word[..len].copy_from_slice(self.take(len)?);
        Ok(u64::from_le_bytes(word))
    }

    fn length(&mut self, len: usize) -> Result<usize, Refusal> {
        usize::try_from(self.unsigned(len)?).map_err(|_| malformed("a length beyond the machine"))
    }

    fn line(&mut self) -> Result<String, Refusal> {
        let rest = &self.bytes[self.position..];
        let end = rest.iter().position(|byte| *byte == b'\n');
        let end = end.ok_or_else(|| malformed("the pickle ends early"))?;
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.position += end + 1;
        Ok(line)
    }

    fn push(&mut self, object: Object) {
        let id = self.heap.add(object);
        self.stack.push(id);
    }

    fn pop(&mut self) -> Result<Id, Refusal> {
        self.stack.pop().ok_or_else(underflow)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Refusal> {
        let heap = &self.heap;
        let mark = self.stack.iter().rposition(|id| heap[*id] == Object::Mark);
        let mark = mark.ok_or_else(underflow)?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn push_number(&mut self, opcode: u8) -> Result<(), Refusal> {
        let number = match opcode {
            b'J' => Object::Int(i64::from(self.unsigned(4)? as u32 as i32)),
            b'K' => Object::Int(i64::from(self.byte()?)),
            b'M' => Object::Int(self.unsigned(2)? as i64),
            b'G' => {
                let mut word = [0; 8];
                word.copy_from_slice(self.take(8)?);
                Object::Float(f64::from_be_bytes(word))
            }
            _ => {
                let len = self.length(if opcode == 0x8a { 1 } else { 4 })?;
                match self.take(len)? {
                    [] => Object::Int(0),
                    digits if len <= 8 => {
                        let sign = if digits[len - 1] >= 0x80 { 0xff } else { 0 };
                        let mut word = [sign; 8];
                        word[..len].copy_from_slice(digits);
                        Object::Int(i64::from_le_bytes(word))
                    }
                    // Beyond 64 bits there is only the magic number, which is compared.
                    digits => Object::Bytes(digits.to_vec()),
                }
            }
        };
        self.push(number);
        Ok(())
    }

    fn push_chars(&mut self, opcode: u8) -> Result<(), Refusal> {
        let width = match opcode {
            0x8c | b'U' | b'C' => 1,
            0x8d | 0x8e => 8,
            _ => 4,
        };
        let len = self.length(width)?;
        let chars = self.take(len)?.to_vec();
        let object = if matches!(opcode, b'B' | b'C' | 0x8e) {
            Object::Bytes(chars)
        } else {
            let text = String::from_utf8(chars);
            let text = text.map_err(|_| malformed("a text that is not UTF-8"))?;
            Object::Text(text.into())
        };
        self.push(object);
        Ok(())
    }

    /// Puts items into the list or dictionary below them.
    fn fill(&mut self, opcode: u8) -> Result<(), Refusal> {
        let items = match opcode {
            b'a' => vec![self.pop()?],
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                vec![key, value]
            }
            _ => self.pop_to_mark()?,
        };
        if opcode == b'd' {
            self.push(Object::Dict(Vec::new()));
        }
        let target = *self.stack.last().ok_or_else(underflow)?;
        match self.heap.get_mut(target) {
            Object::List(list) => list.extend(items),
            Object::Dict(entries) if items.len().is_multiple_of(2) => {
                entries.extend(items.chunks(2).map(|pair| (pair[0], pair[1])));
            }
            _ => return Err(malformed("items for what is no list or dictionary")),
        }
        Ok(())
    }

    fn remember(&mut self, opcode: u8) -> Result<(), Refusal> {
        let key = match opcode {
            b'q' | b'h' => self.length(1)?,
            b'r' | b'j' => self.length(4)?,
            _ => self.memo.len(),
        };
        if matches!(opcode, b'h' | b'j') {
            let id = self.memo.get(&key);
            let id = id.ok_or_else(|| malformed("a reference to nothing"))?;
            self.stack.push(*id);
        } else {
            let id = *self.stack.last().ok_or_else(underflow)?;
            self.memo.insert(key, id);
        }
        Ok(())
    }

    fn push_global(&mut self, opcode: u8) -> Result<(), Refusal> {
        let (module, name) = if opcode == b'c' {
            (self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            let text = |id| self.heap.text(id).map(str::to_owned);
            let names = text(module).zip(text(name));
            names.ok_or_else(|| malformed("a name that is no text"))?
        };
        let global = match (&*module, &*name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", storage) => match dtype_of(storage) {
                Some(dtype) => Global::Storage(dtype),
                None => return Err(Refusal::Named(format!("torch.{storage}"))),
            },
            _ => return Err(Refusal::Named(format!("{module}.{name}"))),
        };
        self.push(Object::Global(global));
        Ok(())
    }

    /// `("storage", torch.FloatStorage, key, location, numel)`, with a sixth part in old files.
    fn storage(&self, id: Id) -> Result<Storage, Refusal> {
        let wrong = || malformed("a reference to what is no storage");
        let Object::Tuple(parts) = &self.heap[id] else {
            return Err(wrong());
        };
        let &[tag, dtype, key, _location, numel, ..] = &parts[..] else {
            return Err(wrong());
        };
        match (&self.heap[dtype], &self.heap[key], self.heap.int(numel)) {
            (Object::Global(Global::Storage(dtype)), Object::Text(key), Some(numel))
                if self.heap.text(tag) == Some("storage") =>
            {
                Ok(Storage {
                    dtype: *dtype,
                    key: key.clone(),
                    numel,
                })
            }
            _ => Err(wrong()),
        }
    }

    /// What a call would make; nothing is called.
    fn rebuild(&self, callee: Id, arguments: Id) -> Result<Object, Refusal> {
        let wrong = || {
            malformed(format!(
                "arguments that make no tensor of at most {MAX_DIMS} dimensions"
            ))
        };
        let (Object::Global(callee), Object::Tuple(arguments)) =
            (&self.heap[callee], &self.heap[arguments])
        else {
            return Err(malformed("a call of what is no name"));
        };
        match (callee, &arguments[..]) {
            (Global::OrderedDict, []) => Ok(Object::Dict(Vec::new())),
            (Global::RebuildTensor, &[storage, offset, dims, strides, ..]) => {
                let Object::Storage(storage) = &self.heap[storage] else {
                    return Err(wrong());
                };
                let heap = &self.heap;
                let parts = (heap.int(offset), heap.ints(dims), heap.ints(strides));
                let (Some(offset), Some(dims), Some(strides)) = parts else {
                    return Err(wrong());
                };
                Ok(Object::Tensor(TensorRef {
                    storage: storage.clone(),
                    offset,
                    dims,
                    strides,
                }))
            }
            (Global::RebuildParameter, &[tensor, ..]) => match &self.heap[tensor] {
                tensor @ Object::Tensor(_) => Ok(tensor.clone()),
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }
}

fn dtype_of(storage: &str) -> Option<Dtype> {
    Some(match storage {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

pub(super) fn malformed(reason: impl Into<String>) -> Refusal {
    Refusal::Malformed(reason.into())
}

fn underflow() -> Refusal {
    malformed("the pickle takes more than it put")
}
