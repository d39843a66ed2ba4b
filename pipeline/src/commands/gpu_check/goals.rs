//! What is timed, what is to be reached, and what others reach.

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Gpt2,
    Llama,
    Sample,
    Ppo,
}

impl Work {
    pub(super) const ALL: [Self; 4] = [Self::Gpt2, Self::Llama, Self::Sample, Self::Ppo];

    /// What it is, with its sizes.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Gpt2 => "train GPT-2 124M, 16 x 1024",
            Self::Llama => "train 1.3B, 8 x 1024",
            Self::Sample => "sample 1.3B, 128 rows, 256 + 256",
            Self::Ppo => "PPO, 1.3B actor, 350M critic and reward, 256 + 256",
        }
    }

    /// What is counted.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Gpt2 | Self::Llama => "tokens/s",
            Self::Sample => "new tokens/s",
            Self::Ppo => "tokens/s, prompts included",
        }
    }

    /// What is to be reached on one H200.
    pub(super) fn goal(self) -> &'static str {
        match self {
            Self::Gpt2 => ">= torch.compile, >= 50 % of the matrix product",
            Self::Llama => ">= 55 % of the matrix product",
            Self::Sample => ">= 5 x transformers, >= 50 % of the copy's bandwidth",
            Self::Ppo => ">= 20,000, generation under half of the step (H200)",
        }
    }

    /// What others have published, on the machine that is named.
    pub(super) fn anchor(self) -> &'static str {
        match self {
            Self::Gpt2 => "llm.c about 52 % (A100)",
            Self::Llama => "torchtitan, Llama 3.1 8B: 33 to 39 % (H100)",
            Self::Sample => "the bandwidth",
            Self::Ppo => "DeepSpeed-Chat about 3,200 (A100); as fast on an H200: 8,000 to 10,000",
        }
    }
}
