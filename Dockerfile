# Pin the digest where you build: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
# The environment has no pip; the wheel's modules are compiled here, since nothing can be written later.
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /build/dist . \
 && python -m venv --without-pip /opt/vllm-capacity \
 && set -- /build/dist/*.whl \
 && python -m pip --python /opt/vllm-capacity/bin/python install --no-cache-dir --compile \
      --constraint constraints.txt "$1[top]"

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="vllm-capacity" \
      org.opencontainers.image.description="Prometheus exporter and live capacity monitor for vLLM" \
      org.opencontainers.image.source="https://github.com/vllm-capacity/vllm-capacity" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/vllm-capacity /opt/vllm-capacity
# NVIDIA's container runtime hands over NVML, and nothing else, for the capability "utility".
ENV PATH=/opt/vllm-capacity/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_DRIVER_CAPABILITIES=utility
USER 65532:65532
WORKDIR /
EXPOSE 8935
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8935/-/healthy', timeout=4)"]
ENTRYPOINT ["vllm-capacity"]
CMD ["serve"]
