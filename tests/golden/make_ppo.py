"""Makes ppo.safetensors: inputs and expected outputs of the arithmetic of PPO and of the reward model.

Written from the papers' equations, one token at a time where that is possible; only the gradients come
from autograd. Everything is f64. Places behind a response's end hold numbers that must not matter.

    .venv/bin/python tests/golden/make_ppo.py        # numpy, torch 2.11, safetensors
"""

import itertools
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).with_name("ppo.safetensors")
rng = np.random.default_rng(20220304)
LENGTHS = [7, 1, 4, 6, 3]
B, R = len(LENGTHS), max(LENGTHS)
MASK = np.array([[1.0 if t < n else 0.0 for t in range(R)] for n in LENGTHS])
out = {}


def put(**tensors):
    for name, value in tensors.items():
        value = value if torch.is_tensor(value) else torch.tensor(value, dtype=torch.float64)
        out[name.replace("__", ".")] = value.detach().contiguous()


def token_rewards():
    """Ouyang et al. 2022, equation 2: r(x, y) - beta ln(pi / pi_ref), token by token."""
    beta = 0.07
    logprobs, reference = -rng.exponential(1.5, (B, R)), -rng.exponential(1.5, (B, R))
    score = rng.normal(size=B)
    index = [n - 1 for n in LENGTHS]
    rewards = np.zeros((B, R))
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            rewards[b, t] = -beta * (logprobs[b, t] - reference[b, t])
        rewards[b, index[b]] += score[b]
    put(mask=MASK, rewards__logprobs=logprobs, rewards__reference=reference, rewards__score=score,
        rewards__score_index=torch.tensor(index), rewards__kl_coef=[beta], rewards__expected=rewards)


def gae():
    """Schulman et al. 2016, equations 11 to 16, as the recursion and as the sum that it abbreviates."""
    rewards, values = rng.normal(size=(B, R)), rng.normal(size=(B, R))
    for case, (gamma, lam) in enumerate([(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)]):
        recursion, direct, returns = (np.zeros((B, R)) for _ in range(3))
        for b, n in enumerate(LENGTHS):
            v = list(values[b, :n]) + [0.0]
            delta = [rewards[b, t] + gamma * v[t + 1] - v[t] for t in range(n)]
            advantage = 0.0
            for t in reversed(range(n)):
                advantage = delta[t] + gamma * lam * advantage
                recursion[b, t] = advantage
                direct[b, t] = sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, n))
                returns[b, t] = direct[b, t] + v[t]
        assert np.abs(recursion - direct).max() < 1e-12
        put(**{f"gae{case}__gamma_lambda": [gamma, lam], f"gae{case}__recursion": recursion,
               f"gae{case}__direct": direct, f"gae{case}__returns": returns})
    # lambda 1 and gamma 1: the return is what is still to come.
    assert math.isclose(out["gae2.returns"][0, 0].item(), rewards[0].sum(), rel_tol=1e-12)
    put(gae__rewards=rewards, gae__values=values)


def whitening():
    x = rng.normal(2.0, 3.0, size=(B, R))
    chosen = x[MASK == 1.0]
    mean = chosen.sum() / chosen.size
    deviation = math.sqrt(((chosen - mean) ** 2).sum() / chosen.size)
    white = np.zeros((B, R))
    white[MASK == 1.0] = (chosen - mean) / (deviation + 1e-8)
    put(whiten__x=x, whiten__moments=[mean, deviation], whiten__expected=white)


def policy_loss():
    """Schulman et al. 2017, equation 7, as a loss, over the tokens that exist."""
    clip = 0.2
    behaviour = -rng.exponential(1.5, (B, R))
    logprobs = torch.tensor(behaviour + rng.normal(0, 0.3, (B, R)), requires_grad=True)
    advantages = rng.normal(size=(B, R))
    low, high = (torch.tensor(bound, dtype=torch.float64) for bound in (1 - clip, 1 + clip))
    loss, clipped = 0.0, 0
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            ratio = torch.exp(logprobs[b, t] - behaviour[b, t])
            plain = ratio * advantages[b, t]
            bounded = min(max(ratio, low), high) * advantages[b, t]
            loss = loss - min(plain, bounded)
            clipped += int(bounded < plain)
    loss.backward()
    assert 3 < clipped < 15
    put(policy__behaviour=behaviour, policy__logprobs=logprobs, policy__advantages=advantages,
        policy__clip=[clip], policy__loss=loss.reshape(1), policy__gradient=logprobs.grad,
        policy__clipped=[float(clipped)])


def value_loss():
    """The value loss of Ziegler et al. 2019's code: the larger of the plain and the clipped square."""
    clip = 0.2
    old, returns = rng.normal(size=(B, R)), rng.normal(size=(B, R))
    new = old + rng.normal(0, 0.3, (B, R))
    for name, bounded in [("value", True), ("value_plain", False)]:
        values = torch.tensor(new, requires_grad=True)
        loss, clipped = 0.0, 0
        for b, n in enumerate(LENGTHS):
            for t in range(n):
                plain = 0.5 * (values[b, t] - returns[b, t]) ** 2
                low, high = torch.tensor(old[b, t] - clip), torch.tensor(old[b, t] + clip)
                kept = 0.5 * (min(max(values[b, t], low), high) - returns[b, t]) ** 2
                if bounded and kept > plain:
                    loss, clipped = loss + kept, clipped + 1
                else:
                    loss = loss + plain
        loss.backward()
        put(**{f"{name}__loss": loss.reshape(1), f"{name}__gradient": values.grad,
               f"{name}__clipped": [float(clipped)]})
    put(value__old=old, value__new=new, value__returns=returns, value__clip=[clip])


def kwise():
    """Ouyang et al. 2022, equation 1: -1/C(K,2) sum over pairs of ln sigma(r_w - r_l), summed over prompts.

    Ranks: 1 is best; equal ranks are ties, which are in no pair."""
    ranks = [[2, 1, 4, 3], [1, 2, 1], [2, 1], [3, 1, 1, 2, 3]]
    scores = torch.tensor(rng.normal(0, 1.5, sum(map(len, ranks))), requires_grad=True)
    loss, pairs, sizes, margins, first = 0.0, [], [], [], 0
    for prompt, rank in enumerate(ranks):
        k = len(rank)
        total = 0.0
        for i, j in itertools.permutations(range(k), 2):
            if rank[i] < rank[j]:
                margin = scores[first + i] - scores[first + j]
                total = total + torch.log(1 / (1 + torch.exp(-margin)))
                pairs.append([prompt, i, j])
                margins.append(margin.item())
        loss = loss - total / (k * (k - 1) / 2)
        sizes.append(k)
        first += k
    loss.backward()
    put(kwise__scores=scores, kwise__sizes=torch.tensor(sizes), kwise__pairs=torch.tensor(pairs),
        kwise__loss=loss.reshape(1), kwise__gradient=scores.grad, kwise__margins=margins,
        kwise__accuracy=[sum(m > 0 for m in margins) / len(margins)])


def calibration():
    """Guo et al. 2017, equation 3: ten bins of confidence over [1/2, 1]."""
    margins = rng.normal(0.8, 1.6, 300)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    edges = np.linspace(0.5, 1.0, 11)
    error = 0.0
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            gap = (margins[inside] > 0).mean() - confidence[inside].mean()
            error += inside.mean() * abs(gap)
    put(calibration__margins=margins, calibration__expected=[error])


def ptx():
    """Ouyang et al. 2022, equation 2, second line: the gradients of PPO and of `coef` times the mean
    token loss on pretraining text, added up. The model: embedding, RMSNorm, output projection."""
    vocab, width, eps, temperature, clip, coef = 11, 6, 1e-5, 0.7, 0.2, 0.3
    embedding, gain, output = (
        torch.tensor(x, requires_grad=True)
        for x in (rng.normal(size=(vocab, width)), 1 + 0.2 * rng.normal(size=width),
                  rng.normal(size=(vocab, width)))
    )

    def logprobs_of_next(ids, temperature):
        x = embedding[ids]
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * gain
        return F.log_softmax(x @ output.T / temperature, -1)

    start, lengths = 4, [4, 2, 3]
    ids = torch.tensor(rng.integers(0, vocab, (3, 8)))
    mask = torch.tensor([[1.0 if t < n else 0.0 for t in range(4)] for n in lengths]).double()
    advantages = torch.tensor(rng.normal(size=(3, 4)))
    table = logprobs_of_next(ids, temperature)
    logprobs = torch.stack([
        torch.stack([table[b, start + r - 1, ids[b, start + r]] for r in range(4)]) for b in range(3)
    ])
    behaviour = logprobs.detach() + torch.tensor(rng.normal(0, 0.2, (3, 4)))
    ratio = torch.exp(logprobs - behaviour)
    surrogate = torch.minimum(ratio * advantages, ratio.clip(1 - clip, 1 + clip) * advantages)
    ppo_loss = -(surrogate * mask).sum() / sum(lengths)

    texts = [rng.integers(0, vocab, n) for n in (9, 5, 9, 2, 7)]
    nll = [
        -logprobs_of_next(torch.tensor(text), 1.0)[t - 1, text[t]]
        for text in texts for t in range(1, len(text))
    ]
    ptx_loss = sum(nll) / len(nll)
    (ppo_loss + coef * ptx_loss).backward()
    padded = [list(text) + [0] * (9 - len(text)) for text in texts]
    put(ptx__embedding=embedding, ptx__gain=gain, ptx__output=output, ptx__ids=ids, ptx__mask=mask,
        ptx__advantages=advantages, ptx__behaviour=behaviour, ptx__logprobs=logprobs,
        ptx__texts=torch.tensor(padded), ptx__text_lengths=torch.tensor([len(text) for text in texts]),
        ptx__settings=[eps, temperature, clip, coef], ptx__response_start=torch.tensor([start]),
        ptx__ppo_loss=ppo_loss.reshape(1), ptx__ptx_loss=ptx_loss.reshape(1),
        ptx__embedding_gradient=embedding.grad, ptx__gain_gradient=gain.grad,
        ptx__output_gradient=output.grad)


def controller():
    """Ziegler et al. 2019, section 2.2: e = clip((KL - target) / target), beta *= 1 + K e."""
    beta, target, horizon = 0.15, 6.0, 10000.0
    kls = [0.0, 3.0, 5.5, 6.0, 6.6, 9.0, 40.0, 7.0]
    episodes = [512, 512, 64, 512, 1024, 512, 512, 1]
    betas = []
    for kl, n in zip(kls, episodes):
        error = max(-0.2, min(0.2, (kl - target) / target))
        beta *= 1 + error * n / horizon
        betas.append(beta)
    put(controller__settings=[0.15, target, horizon], controller__kl=kls,
        controller__episodes=torch.tensor(episodes), controller__expected=betas)


for part in (token_rewards, gae, whitening, policy_loss, value_loss, kwise, calibration, ptx, controller):
    part()
save_file(out, OUT, {"made_by": "tests/golden/make_ppo.py"})
print(f"{OUT}: {len(out)} tensors, {OUT.stat().st_size} bytes")
