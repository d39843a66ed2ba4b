# The image that a cluster runs: the archive of `make dist` on libtorch from PyTorch's wheel, which brings CUDA's runtime and NCCL.
# The driver is the host's (NVIDIA's container toolkit). `make image` builds it, on a machine whose glibc is no newer than
# this Debian's (2.36), since the archive is built there.
FROM python:3.12-slim-bookworm

RUN pip install --no-cache-dir --root-user-action=ignore torch==2.11.0
ADD dist/rlhf-linux-x86_64.tar.gz /opt
# On Kubernetes a job of ours releases the others with it.
COPY --from=registry.k8s.io/kubectl:v1.34.1 /bin/kubectl /usr/local/bin/kubectl

# `rlhf conduct` asks Kubernetes by it; nothing else needs it.
ADD --chmod=755 https://dl.k8s.io/release/v1.33.0/bin/linux/amd64/kubectl /usr/local/bin/kubectl

ENV LIBTORCH=/usr/local/lib/python3.12/site-packages/torch \
    PATH=/opt/rlhf/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The binary finds libtorch, and a worker starts with it.
RUN rlhf doctor

ENTRYPOINT ["rlhf"]
