#   docker build -t lgrpo .
#   docker run --rm -it --gpus all -v "$PWD/runs:/data/runs" -v "$HOME/.cache/huggingface:/cache/huggingface" lgrpo train
#
# Leave out --gpus for a CPU; add --user "$(id -u):$(id -g)" to own the files in runs/, -e HF_HUB_OFFLINE=1 for no network.
# A smaller image without CUDA: --build-arg PIP_OPTIONS="--index-url INDEX", INDEX being PyTorch's for CPU wheels.
FROM python:3.12-slim

# Wheels only: a package without one is an error here, not a compiler's business. PyPI's torch brings CUDA with it.
ENV PIP_ONLY_BINARY=:all: \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

# Dependencies first, in a layer that code does not touch: it is rebuilt when pyproject.toml changes, and only then.
WORKDIR /src
COPY pyproject.toml ./
ARG PIP_OPTIONS=
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb')); \
print(*project['project']['dependencies'], *project['project']['optional-dependencies']['parquet'], \
*project['build-system']['requires'], sep='\n')" > /tmp/requirements.txt \
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
