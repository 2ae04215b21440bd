# The danet commands on the CPU:
#
#   docker build --tag danet .
#   docker run --rm --volume "$PWD:/data" danet detect video.mp4
#
# The first stage compiles the kernels; the image holds the wheel and its dependencies, but no compiler.

FROM python:3.12-slim AS build
# PyTorch's index of CPU builds: the package on PyPI brings 4 GB of CUDA libraries.
ARG TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir $TORCH
RUN pip install --no-cache-dir "setuptools>=77" cmake ninja numpy
RUN pip wheel . --no-deps --no-build-isolation --wheel-dir wheels

FROM python:3.12-slim
ARG TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
RUN pip install --no-cache-dir $TORCH
COPY --from=build /source/wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl
# Results belong to the user who runs the image: docker run --user "$(id -u):$(id -g)"
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["danet"]
CMD ["--help"]
