//! Every tensor of a model: its Hugging Face name, shape and initial distribution.

use recipe::shape::{Family, ModelShape};

/// What a model computes from its hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Logits over the vocabulary (`…ForCausalLM`, `GPT2LMHeadModel`).
    Token,
    /// One number a position (`…ForSequenceClassification` with one label).
    Scalar,
}

/// How a tensor starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
}

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Hugging Face's name.
    pub name: String,
    /// Its shape. GPT-2's matrices are `[in, out]` (`Conv1D`), all others `[out, in]`.
    pub dims: Vec<i64>,
    /// How it starts.
    pub init: Init,
}

/// Standard deviation of matrices at the start (Radford et al. 2019).
const STD: f64 = 0.02;

/// All tensors of a model. A tied output projection is not among them.
///
/// Matrices start at N(0, 0.02²), those that write into the residual stream at 0.02/sqrt(2 layers)
/// (Radford et al. 2019, section 2.3), the scalar head at N(0, 1/(width+1)) (Stiennon et al. 2020).
pub fn tensors(shape: &ModelShape, head: Head) -> Vec<TensorSpec> {
    let mut list = match shape.family {
        Family::Gpt2 => gpt2(shape),
        Family::Llama => llama(shape),
    };
    let (vocab, width) = (shape.vocab_size as i64, shape.width as i64);
    match head {
        Head::Scalar => {
            let std = 1.0 / (shape.width as f64 + 1.0).sqrt();
            list.push(spec("score.weight", &[1, width], Init::Normal(std)));
        }
        Head::Token if !shape.tie_embeddings => {
            list.push(spec("lm_head.weight", &[vocab, width], Init::Normal(STD)));
        }
        Head::Token => {}
    }
    list
}

fn spec(name: impl Into<String>, dims: &[i64], init: Init) -> TensorSpec {
    TensorSpec {
        name: name.into(),
        dims: dims.to_vec(),
        init,
    }
}

fn residual_std(shape: &ModelShape) -> f64 {
    STD / (2.0 * shape.layers as f64).sqrt()
}

fn gpt2(shape: &ModelShape) -> Vec<TensorSpec> {
    let (d, m) = (shape.width as i64, shape.mlp_width as i64);
    let normal = Init::Normal(STD);
    let residual = Init::Normal(residual_std(shape));
    let mut list = vec![
        spec(
            "transformer.wte.weight",
            &[shape.vocab_size as i64, d],
            normal,
        ),
        spec(
            "transformer.wpe.weight",
            &[shape.max_positions as i64, d],
            normal,
        ),
    ];
    let mut affine = |name: String, dims: &[i64], init: Init| {
        list.push(spec(format!("{name}.weight"), dims, init));
        list.push(spec(
            format!("{name}.bias"),
            &dims[dims.len() - 1..],
            Init::Zeros,
        ));
    };
    for i in 0..shape.layers {
        let block = format!("transformer.h.{i}");
        affine(format!("{block}.ln_1"), &[d], Init::Ones);
        affine(format!("{block}.attn.c_attn"), &[d, 3 * d], normal);
        affine(format!("{block}.attn.c_proj"), &[d, d], residual);
        affine(format!("{block}.ln_2"), &[d], Init::Ones);
        affine(format!("{block}.mlp.c_fc"), &[d, m], normal);
        affine(format!("{block}.mlp.c_proj"), &[m, d], residual);
    }
    affine("transformer.ln_f".to_owned(), &[d], Init::Ones);
    list
}

fn llama(shape: &ModelShape) -> Vec<TensorSpec> {
    let (d, m) = (shape.width as i64, shape.mlp_width as i64);
    let queries = (shape.heads * shape.head_dim) as i64;
    let keys = (shape.kv_heads * shape.head_dim) as i64;
    let normal = Init::Normal(STD);
    let residual = Init::Normal(residual_std(shape));
    let mut list = vec![spec(
        "model.embed_tokens.weight",
        &[shape.vocab_size as i64, d],
        normal,
    )];
    for i in 0..shape.layers {
        let mut add = |name: &str, dims: &[i64], init: Init| {
            list.push(spec(format!("model.layers.{i}.{name}.weight"), dims, init));
        };
        add("input_layernorm", &[d], Init::Ones);
        add("self_attn.q_proj", &[queries, d], normal);
        add("self_attn.k_proj", &[keys, d], normal);
        add("self_attn.v_proj", &[keys, d], normal);
        add("self_attn.o_proj", &[d, queries], residual);
        add("post_attention_layernorm", &[d], Init::Ones);
        add("mlp.gate_proj", &[m, d], normal);
        add("mlp.up_proj", &[m, d], normal);
        add("mlp.down_proj", &[d, m], residual);
    }
    list.push(spec("model.norm.weight", &[d], Init::Ones));
    list
}
