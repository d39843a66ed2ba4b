//! Devices and number formats of requests.

use std::path::Path;

use anyhow::Result;
use model::Model;
use recipe::request::Compute;
use tch::Device;
use torch_ext::DeviceChoice;

/// The device of a word of the command line.
pub fn device(word: &str) -> Result<Device> {
    let choice: DeviceChoice = word.parse()?;
    Ok(torch_ext::resolve_device(choice)?)
}

/// The model of a request, under adapters where it names some.
pub fn load(dir: &Path, adapter: Option<&Path>, compute: &Compute) -> Result<Model> {
    let kind = trainer::context::kind_of(compute.dtype);
    let device = device(&compute.device)?;
    adapted(
        Model::load_frozen(dir, device, kind, compute.quantize)?,
        adapter,
    )
}

/// The model under the adapters of a folder, where there is one.
pub fn adapted(model: Model, adapter: Option<&Path>) -> Result<Model> {
    Ok(match adapter {
        Some(dir) => model.with_adapter(dir)?,
        None => model,
    })
}
