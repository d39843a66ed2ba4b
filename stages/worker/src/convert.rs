//! `rlhf model convert` and `rlhf model merge`.

use anyhow::Result;
use model::{Checkpoint, Model, write_folder};
use recipe::plan::Objective;
use recipe::request::ConvertRequest;
use recipe::trained_objective;
use runtime::WholeFolder;
use runtime::events::{Event, emit};
use runtime::manifest::{Manifest, content_id};
use tch::Device;

use crate::compute;

/// Reads a model and writes it again, sealed: in another type, in files of another size, with adapters merged
/// into it. Without a type it is written in the narrowest one that rounds no weight.
pub fn run(request: &ConvertRequest) -> Result<()> {
    let kind = match request.dtype {
        Some(dtype) => trainer::context::kind_of(dtype),
        None => Model::stored_kind(&request.model)?,
    };
    let checkpoint = if request.model.is_file() {
        Checkpoint::from_gguf(&request.model, Device::Cpu, kind)?
    } else {
        Checkpoint::load(&request.model, Device::Cpu, kind)?
    };
    let Checkpoint {
        model, tokenizer, ..
    } = checkpoint;
    let model = compute::adapted(model, request.adapter.as_deref())?.merged()?;
    let (model, objective) = if request.adapter.is_some() {
        // Adapters are trained on next tokens alone.
        (model.without_places(), Objective::Causal)
    } else {
        (model, trained_objective(&request.model)?)
    };
    let folder = WholeFolder::create(&request.out)?;
    write_folder(folder.path(), &model, &tokenizer, request.shard_bytes)?;
    let made_by = if request.adapter.is_some() {
        "merge"
    } else {
        "convert"
    };
    let mut manifest = Manifest::new("checkpoint", made_by, 0);
    for path in [Some(&request.model), request.adapter.as_ref()]
        .into_iter()
        .flatten()
    {
        let parent = content_id(path, Manifest::read)?;
        manifest.parents.insert(path.display().to_string(), parent);
    }
    if objective != Objective::Causal {
        manifest.config["objective"] = objective.word().into();
    }
    manifest.seal(folder.path())?;
    folder.commit()?;
    emit(&Event::Note {
        text: format!(
            "{}: {} parameters of {} in {kind:?}",
            request.out.display(),
            model.num_params(),
            model.shape.family.model_type(),
        ),
    });
    Ok(())
}
