# Encore in a container; docs/clusters.md says how to run it.
#   docker build --tag encore .
FROM python:3.12-slim

# Triton compiles a launcher for the kernels that --compile true makes.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/encore
# What is installed comes before the code, which changes more often: a layer of several GB is kept then.
COPY setup_venv.sh requirements.lock ./
RUN ./setup_venv.sh && rm -rf ~/.cache
COPY encore encore
COPY losses losses
COPY run_train.sh train_ddp.py train_worker.py prepare_data.py train_codec.py inference_sample.py evaluate.py ablate.py ./

# Data and results are mounted here, so that paths among the flags mean the same inside and outside.
WORKDIR /work
ENTRYPOINT ["/opt/encore/run_train.sh"]
