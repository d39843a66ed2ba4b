//! Who says what is good: gold rules, reward models, and language models.
//!
//! In: the text of a response ([`GoldRule`]), or the tokens of prompt and response ([`RewardJudge`]).
//! Out: one number each, higher is better.
//!
//! **Architecture invariant.** A judge knows nothing of where texts come from or what becomes of its
//! numbers: it neither samples nor trains, and a score depends on its text alone, on no batch mate, no
//! padding and no order.
//!
//! Reading order: [`gold`], `vader` (the rules of sentiment), [`reward`], [`likelihood`], [`text`].

pub mod gold;
pub mod likelihood;
pub mod reward;
pub mod text;
mod vader;

pub use gold::GoldRule;
pub use likelihood::response_logprobs;
pub use reward::{JudgeError, RewardJudge};
