//! Adapters against peft (`tests/golden/make_lora.py` made the numbers, in f64), and what must hold of them:
//! merged equals unmerged, frozen weights stay as they are, files go there and back, bad ones are refused.

mod files;
mod golden;
mod numbers;
mod quantized;
