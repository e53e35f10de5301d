# The worker, and every other command: docker run shopflow:0.1.0 NAME
# With the charts, without the embedded servers: the settings name a Kafka and a MongoDB (see docker-compose.yml).

FROM python:3.13.14-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY faust_batches ./faust_batches
COPY shopflow ./shopflow
RUN python -m venv /opt/shopflow \
    && /opt/shopflow/bin/pip install --no-cache-dir --disable-pip-version-check '.[page]'

FROM python:3.13.14-slim-bookworm
RUN useradd --uid 10001 --create-home shopflow \
    && install --directory --owner=shopflow --group=shopflow /data
COPY --from=build /opt/shopflow /opt/shopflow
ENV PATH="/opt/shopflow/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    SHOPFLOW_DATA_DIR=/data \
    SHOPFLOW_WEB_BIND=0.0.0.0

# By number, so that Kubernetes' runAsNonRoot can tell that it isn't root.
USER 10001
WORKDIR /home/shopflow
VOLUME /data
EXPOSE 6066
ENTRYPOINT ["shopflow"]
CMD ["worker"]
