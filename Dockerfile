#   docker build -t lgrpo .
#   mkdir -p runs ~/.cache/huggingface
#   docker run --rm -it --gpus all --user "$(id -u):$(id -g)" -v "$PWD/runs:/data/runs" \
#       -v "$HOME/.cache/huggingface:/cache/huggingface" lgrpo train
#
# Leave out --gpus for a CPU; add -e HF_HUB_OFFLINE=1, or --network none, for no network. docs/container.md says more.
# A smaller image without CUDA: --build-arg PIP_OPTIONS="--extra-index-url INDEX", INDEX being PyTorch's for CPU wheels.
FROM python:3.12-slim

LABEL org.opencontainers.image.title="lgrpo" \
      org.opencontainers.image.description="Latent reasoning for causal language models, learnt on one GPU" \
      org.opencontainers.image.licenses="MIT"

# Wheels only: a package without one is an error here, not a compiler's business. PyPI's torch brings CUDA with it.
ENV PIP_ONLY_BINARY=:all: \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

# Dependencies first, in a layer that code does not touch: it is rebuilt when pyproject.toml changes, and only then.
# All extras are in it but the tests': what --help offers works.
WORKDIR /src
COPY pyproject.toml ./
ARG PIP_OPTIONS=
RUN python -c "import tomllib; file = tomllib.load(open('pyproject.toml', 'rb')); project = file['project']; \
extras = [one for name, extra in project['optional-dependencies'].items() if name != 'test' for one in extra]; \
print(*project['dependencies'], *extras, *file['build-system']['requires'], sep='\n')" > /tmp/requirements.txt \
 && pip install $PIP_OPTIONS -r /tmp/requirements.txt \
 && rm /tmp/requirements.txt

COPY README.md LICENSE ./
COPY lgrpo ./lgrpo
RUN pip install --no-deps --no-build-isolation --no-index . && rm -rf /src/*

# Any --user may write here: an id without an entry in /etc/passwd has no home of its own, and needs a name for torch.
RUN useradd --create-home --uid 1000 lgrpo \
 && mkdir -p /data/runs /cache/huggingface /cache/torch \
 && chown -R lgrpo:lgrpo /data /cache \
 && chmod -R a+rwX /data /cache
ENV HOME=/cache \
    USER=lgrpo \
    LOGNAME=lgrpo \
    HF_HOME=/cache/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/cache/torch \
    TRITON_CACHE_DIR=/cache/torch
WORKDIR /data
VOLUME ["/data/runs", "/cache/huggingface"]
USER 1000:1000

# Not through a shell: `docker stop` must reach lgrpo itself, which saves and ends.
STOPSIGNAL SIGTERM
ENTRYPOINT ["lgrpo"]
CMD ["--help"]
