# The image behind `container:` in the Snakefile: docker build -t pelap:0.1.0 .
FROM python:3.12-slim

WORKDIR /opt/pelap
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY pelap pelap
RUN pip install --no-cache-dir -c requirements.lock '.[study,audio]'

WORKDIR /work
CMD ["pelap", "--help"]
