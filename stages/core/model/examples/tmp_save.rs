//! tmp
use model::*; use recipe::shape::*; use tch::*;
fn main(){ for (f,h,n) in [(Family::Gpt2,Head::Token,"gt"),(Family::Gpt2,Head::Scalar,"gs"),(Family::Llama,Head::Token,"lt"),(Family::Llama,Head::Scalar,"ls")] {
 let shape=ModelShape{family:f,vocab_size:50,max_positions:16,layers:2,width:24,heads:4,kv_heads: if f==Family::Gpt2 {4} else {2},head_dim:6,mlp_width:36,norm_eps:1e-6,rope_theta:777.0,tie_embeddings: f==Family::Gpt2};
 let m=Model::init(&shape,h,1,Device::Cpu,Kind::Float);
 for t in m.params().values() { let _ = t.shallow_clone().g_mul_scalar_(5.0); }
 let d=std::path::PathBuf::from(format!("/tmp/ours_{n}")); std::fs::create_dir_all(&d).unwrap(); m.save(&d).unwrap();
 let ids=Tensor::arange(16,(Kind::Int64,Device::Cpu)).unsqueeze(0); let hid=m.hidden(&Input::dense(ids));
 let o= if h==Head::Token {m.logits(&hid)} else {m.scalar(&hid)}; o.detach().write_npy(d.join("out.npy")).unwrap(); } }
