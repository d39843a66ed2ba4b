use datasets::*;
use std::path::{Path, PathBuf};
use std::time::Instant;
#[test]
fn adhoc() {
    let t = Instant::now();
    let out = PathBuf::from("/tmp/chit/out");
    let o = ImportOptions { format: ImportFormat::Chitchat, path: Some("/tmp/chit/chitchat_dataset/dataset.json".into()), heldout: 0.1, seed: 1, prompt_turns: 1, conversations: 0 };
    let r = import(&o, &out).unwrap();
    println!("import {:?} {:#?}", t.elapsed(), r);
    let t = Instant::now();
    let texts: Vec<Text> = load_split(&out, Split::Train).unwrap();
    let tok = Tokenizer::train(texts.into_iter().map(|x| x.text), 4096).unwrap();
    println!("train {:?}", t.elapsed());
    tok.save(Path::new("/tmp/chit/out")).unwrap();
    let t = Instant::now();
    let _ = std::fs::remove_dir_all("/tmp/chit/cache");
    let rows = TokenRows::build(&out, Split::Train, &tok, 128, Path::new("/tmp/chit/cache")).unwrap();
    println!("pack {:?} rows {} bytes {} dropped {}", t.elapsed(), rows.num_rows(), rows.num_bytes(), rows.num_dropped());
    let t = Instant::now();
    let order = Order::new(1, "x", rows.num_rows(), rows.window());
    for s in 0..100 { rows.rows(&order.batch(s, 64)).unwrap(); }
    println!("100 batches {:?}", t.elapsed());
    let t = Instant::now();
    let d: Vec<Demonstration> = load_split(&out, Split::Train).unwrap();
    let (e, c) = sft_examples(&d, &tok, 128, Overlong::Left).unwrap();
    let learned: usize = e.iter().map(|e| e.loss.iter().filter(|&&l| l).count()).sum();
    println!("sft {:?} {} {:?} tokens {} learned {learned}", t.elapsed(), e.len(), c, e.iter().map(|e| e.ids.len()).sum::<usize>());
    let t = Instant::now();
    let p: Vec<Prompt> = load_split(&out, Split::Train).unwrap();
    println!("load {:?}", t.elapsed());
    let t = Instant::now();
    let r: usize = p.iter().map(|p| tok.render(&p.messages, true).unwrap().len()).sum();
    println!("render 1 thread {:?} {r}", t.elapsed());
    let t = Instant::now();
    let r: usize = p.iter().map(|p| tok.encode(&p.messages[0].content).unwrap().len()).sum();
    println!("encode 1 thread {:?} {r}", t.elapsed());
    let t = Instant::now();
    let (e, c) = prompt_examples(&p, &tok, 32, Overlong::Left).unwrap();
    println!("prompts {:?} {} {:?}", t.elapsed(), e.len(), c);
    let texts: Vec<Text> = load_split(&out, Split::Heldout).unwrap();
    println!("{:?}", texts[0]);
    let syn = PathBuf::from("/tmp/chit/syn");
    import(&ImportOptions { format: ImportFormat::Synthetic, conversations: 400, heldout: 0.2, ..o }, &syn).unwrap();
    let texts: Vec<Text> = load_split(&syn, Split::Train).unwrap();
    for t in &texts[..4] { println!("{}", t.text); }
    println!("{:?}", Tokenizer::train(texts.into_iter().map(|x| x.text), 4096).map(|_| ()).unwrap_err().to_string());
    for dir in ["tok_gpt2", "tok_smollm2"] {
        let t = Tokenizer::load(&Path::new("/work/shared/data").join(dir)).unwrap();
        let m = [Message::new("user", "Hello there"), Message::new("assistant", "General 🎉 Kenobi")];
        println!("{dir} {} eos {} pad {} {:?} {:?}", t.vocab_size(), t.eos_id(), t.pad_id(), t.encode("Hello world<|endoftext|>"), t.encode_dialogue(&m).map_err(|e| e.to_string()));
    }
}
