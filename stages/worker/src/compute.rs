//! Devices and number formats of requests.

use anyhow::Result;
use recipe::request::Compute;
use tch::{Device, Kind};
use torch_ext::DeviceChoice;

/// The device of a word of the command line.
pub fn device(word: &str) -> Result<Device> {
    let choice: DeviceChoice = word.parse()?;
    Ok(torch_ext::resolve_device(choice)?)
}

/// Device and format of a request.
pub fn of(compute: &Compute) -> Result<(Device, Kind)> {
    Ok((
        device(&compute.device)?,
        trainer::context::kind_of(compute.dtype),
    ))
}
