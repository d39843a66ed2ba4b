//! Folders of others' making: `ChatGLM`'s names, types side by side, tokenizers without padding.

use std::collections::BTreeMap;

use datasets::tokenizer::Tokenizer;
use model::weights::{self, SHARD_BYTES};
use model::{Head, Model, write_folder};
use recipe::families::Sizes;
use recipe::shape::{Family, ModelShape};
use tch::{Device, Kind, Tensor};

fn model(family: Family, head: Head, kind: Kind) -> Model {
    let shape = ModelShape {
        mlp_width: 32,
        ..family.shape(&Sizes {
            vocab_size: 300,
            max_positions: 16,
            layers: 1,
            width: 8,
            heads: 2,
        })
    };
    Model::init(&shape, head, 3, Device::Cpu, kind)
}

/// A GLM's tensors under the names of `ChatGLM2`'s folders: query, key and value are one.
fn chatglm_tensors(params: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let get = |name: &str| params[name].shallow_clone();
    let layer = |part: &str| get(&format!("model.layers.0.{part}"));
    let fused = |end: &str| {
        let parts = ["q", "k", "v"].map(|x| layer(&format!("self_attn.{x}_proj.{end}")));
        Tensor::cat(&parts, 0)
    };
    let block = [
        ("input_layernorm.weight", layer("input_layernorm.weight")),
        ("self_attention.query_key_value.weight", fused("weight")),
        ("self_attention.query_key_value.bias", fused("bias")),
        (
            "self_attention.dense.weight",
            layer("self_attn.o_proj.weight"),
        ),
        (
            "post_attention_layernorm.weight",
            layer("post_attention_layernorm.weight"),
        ),
        ("mlp.dense_h_to_4h.weight", layer("mlp.gate_up_proj.weight")),
        ("mlp.dense_4h_to_h.weight", layer("mlp.down_proj.weight")),
    ];
    let outside = [
        (
            "embedding.word_embeddings.weight",
            get("model.embed_tokens.weight"),
        ),
        ("rotary_pos_emb.inv_freq", Tensor::from_slice(&[1_f32])),
        ("encoder.final_layernorm.weight", get("model.norm.weight")),
        ("output_layer.weight", get("lm_head.weight")),
    ];
    let block = block.map(|(name, tensor)| (format!("encoder.layers.0.{name}"), tensor));
    let outside = outside.map(|(name, tensor)| (name.to_owned(), tensor));
    let all = block.into_iter().chain(outside);
    all.map(|(name, tensor)| (format!("transformer.{name}"), tensor))
        .collect()
}

#[test]
fn a_chatglm_folder_is_read_as_glm() {
    let original = model(Family::Glm, Head::Token, Kind::Float);
    let root = tempfile::tempdir().expect("temporary folder");
    let file = root.path().join("model.safetensors");
    let mut stored = chatglm_tensors(original.params());
    weights::write(&file, &stored).expect("write");
    let config = serde_json::json!({
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "padded_vocab_size": 300,
        "seq_length": 16, "num_layers": 1, "hidden_size": 8, "num_attention_heads": 2,
        "multi_query_attention": true, "multi_query_group_num": original.shape.kv_heads,
        "kv_channels": 4, "ffn_hidden_size": 32, "layernorm_epsilon": 1e-5, "add_qkv_bias": true,
        "add_bias_linear": false, "rmsnorm": true, "post_layer_norm": true,
        "apply_residual_connection_post_layernorm": false, "quantization_bit": 0,
    });
    std::fs::write(root.path().join("config.json"), config.to_string()).expect("write");
    let read = Model::load(root.path(), Device::Cpu, Kind::Float).expect("load");
    assert_eq!(read.shape, original.shape);
    for (name, tensor) in original.params() {
        assert!(read.params()[name].equal(tensor), "{name}");
    }
    // A row less than query, key and value have together, and a row more.
    let name = "transformer.encoder.layers.0.self_attention.query_key_value.weight";
    for rows in [23, 25] {
        stored.insert(
            name.to_owned(),
            Tensor::zeros([rows, 8], (Kind::Float, Device::Cpu)),
        );
        weights::write(&file, &stored).expect("write");
        let refused = Model::load(root.path(), Device::Cpu, Kind::Float);
        let text = refused.expect_err("refused").to_string();
        let expected = format!("`{name}` is [{rows}, 8], expected [24, 8]");
        assert!(text.contains(&expected), "{text}");
    }
}

#[test]
fn the_stored_type_rounds_no_weight() {
    let dir = tempfile::tempdir().expect("folder");
    let original = model(Family::Gpt2, Head::Token, Kind::BFloat16);
    original.save(dir.path()).expect("save");
    let file = dir.path().join("model.safetensors");
    let stored_kind = |changed: &[(&str, Kind)]| {
        let mut tensors = weights::read(&file).expect("read");
        for (name, kind) in changed {
            let ones = || Tensor::ones([8], (Kind::Float, Device::Cpu));
            let tensor = tensors.get(*name).map_or_else(ones, Tensor::shallow_clone);
            tensors.insert((*name).to_owned(), tensor.to_kind(*kind));
        }
        weights::write(&file, &tensors).expect("write");
        Model::stored_kind(dir.path()).expect("floats")
    };
    assert_eq!(stored_kind(&[]), Kind::BFloat16);
    // A constant is no weight.
    let mask = "transformer.h.0.attn.masked_bias";
    assert_eq!(stored_kind(&[(mask, Kind::Float)]), Kind::BFloat16);
    let (first, second) = ("transformer.h.0.ln_1.weight", "transformer.h.0.ln_2.weight");
    assert_eq!(stored_kind(&[(first, Kind::Half)]), Kind::Float);
    assert_eq!(stored_kind(&[(second, Kind::Float)]), Kind::Float);
    assert_eq!(stored_kind(&[(first, Kind::Double)]), Kind::Double);
}

#[test]
fn half_precision_stays_what_it_is() {
    let dir = tempfile::tempdir().expect("folder");
    let original = model(Family::Llama, Head::Token, Kind::Half);
    original.save(dir.path()).expect("save");
    assert_eq!(Model::stored_kind(dir.path()).expect("floats"), Kind::Half);
    let read = Model::load(dir.path(), Device::Cpu, Kind::Half).expect("load");
    for (name, tensor) in original.params() {
        let found = &read.params()[name];
        assert!(found.kind() == Kind::Half && found.equal(tensor), "{name}");
    }
}

/// More rows than are compared at once.
#[test]
fn a_tied_head_that_is_stored_must_be_the_embedding() {
    let shape = Family::Gpt2.shape(&Sizes {
        vocab_size: 9000,
        max_positions: 16,
        layers: 1,
        width: 8,
        heads: 2,
    });
    let dir = tempfile::tempdir().expect("folder");
    let original = Model::init(&shape, Head::Token, 3, Device::Cpu, Kind::Float);
    original.save(dir.path()).expect("save");
    let file = dir.path().join("model.safetensors");
    let plain = weights::read(&file).expect("read");
    let embedding = &plain["transformer.wte.weight"];
    let with_head = |head: Tensor| {
        let mut tensors: BTreeMap<String, Tensor> = plain
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect();
        tensors.insert("lm_head.weight".to_owned(), head);
        weights::write(&file, &tensors).expect("write");
        Model::load(dir.path(), Device::Cpu, Kind::Float).map_err(|error| error.to_string())
    };
    let read = with_head(embedding.copy()).expect("the same numbers");
    assert!(!read.params().contains_key("lm_head.weight"));
    let other = embedding.copy();
    let _ = other.narrow(0, 8999, 1).fill_(1.0);
    let short = embedding.narrow(0, 0, 8999).copy();
    for head in [other, short] {
        let error = with_head(head).expect_err("refused");
        assert!(
            error.contains("`lm_head.weight` differs from `transformer.wte.weight`"),
            "{error}"
        );
    }
}

/// GPT-2's tokenizer has no token but words and EOS: a classifier that took a word for padding would read its
/// score before it.
#[test]
fn a_folder_states_no_word_as_padding() {
    let dir = tempfile::tempdir().expect("folder");
    let texts = ["hello there, how are you?", "fine, thank you"].map(str::to_owned);
    let tokenizer = Tokenizer::train(texts.into_iter(), 280).expect("tokenizer");
    tokenizer.save(dir.path()).expect("save");
    let path = dir.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path)
        .expect("read")
        .replace("<|pad|>", "<|pat|>");
    let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let added = json["added_tokens"].as_array_mut().expect("a list");
    added.retain(|token| token["content"] == "<|endoftext|>");
    std::fs::write(&path, json.to_string()).expect("write");
    std::fs::remove_file(dir.path().join("tokenizer_config.json")).expect("remove");
    let words = Tokenizer::load(dir.path()).expect("load");
    let scalar = model(Family::Gpt2, Head::Scalar, Kind::Float);
    for (tokenizer, pad) in [(&tokenizer, Some(1)), (&words, None)] {
        write_folder(dir.path(), &scalar, tokenizer, SHARD_BYTES).expect("save");
        for (file, key) in [
            ("config.json", "pad_token_id"),
            ("tokenizer_config.json", "pad_token"),
        ] {
            let bytes = std::fs::read(dir.path().join(file)).expect("read");
            let json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
            assert_eq!(json.get(key).is_some(), pad.is_some(), "{file}");
        }
    }
}
