# A page for a fitted table or a trained model, for this machine alone:
#
#   docker build --tag arcsm .
#   docker run --rm --publish 127.0.0.1:7860:7860 --volume "$PWD/model:/model:ro" arcsm
#
# Other commands work in this folder, as yourself:
#
#   docker run --rm --no-healthcheck --user "$(id -u):$(id -g)" --env HOME=/tmp --volume "$PWD:/data" --workdir /data \
#     arcsm detect normal.csv new.csv --out scores.csv
#
# Smaller, without CUDA: pass pip an index of CPU builds of torch by --build-arg PIP_EXTRA_INDEX_URL=...
FROM python:3.12-slim AS build
ARG PIP_EXTRA_INDEX_URL=
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md CHANGELOG.md LICENSE CITATION.cff ./
COPY src src
RUN python -m venv /opt/arcsm && /opt/arcsm/bin/pip install --no-cache-dir ".[web]"

FROM python:3.12-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 arcsm
COPY --from=build /opt/arcsm /opt/arcsm
ENV PATH=/opt/arcsm/bin:$PATH
USER arcsm
WORKDIR /home/arcsm
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=5)"]
ENTRYPOINT ["arcsm"]
CMD ["serve", "/model", "--host", "0.0.0.0", "--port", "7860"]
