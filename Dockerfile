# The worker, and every other command: docker run shopflow:0.1.0 NAME
#
# With the charts, without the embedded servers: the settings name a Kafka and a MongoDB (see docker-compose.yml).
# It runs with a read-only root file system, without capabilities, and in 512 MB of memory; it writes to /data only.
# Another user: docker run --user NUMBER writes to a new volume at /data, since the group is 0 then. With a group of its
# own, /data must be that group's.
# The base image is named by its version, not by its digest: add yours (docker buildx imagetools inspect NAME).

FROM python:3.13.14-slim-trixie AS build
WORKDIR /src
# Exact versions, each with its checksums: `make lock` writes it. setuptools builds shopflow, and goes.
COPY requirements.lock ./
RUN python -m venv --without-pip /opt/shopflow \
    && pip --python /opt/shopflow/bin/python install --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock
# 60 MB that no command reads: tests, the names of other countries, and the parts of Bokeh that our charts don't use.
RUN cd /opt/shopflow/lib/python3.13/site-packages \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && find faker/providers -mindepth 2 -maxdepth 2 -type d -name '*_*' ! -name pl_PL ! -name en_US ! -name __pycache__ -exec rm -r {} + \
    && find bokeh/server/static -type f ! -name bokeh.min.js -delete
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY faust_batches ./faust_batches
COPY shopflow ./shopflow
RUN pip --python /opt/shopflow/bin/python install --no-cache-dir --no-deps --no-build-isolation . \
    && pip --python /opt/shopflow/bin/python uninstall --yes setuptools

FROM python:3.13.14-slim-trixie
LABEL org.opencontainers.image.title="shopflow" \
      org.opencontainers.image.description="A Faust application: Kafka to MongoDB, every event stored and counted exactly once" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
# The base image's pip has no place where nothing is installed.
RUN python -m pip uninstall --yes --root-user-action=ignore pip \
    && useradd --uid 10001 --create-home shopflow \
    && install --directory --owner=shopflow --group=root --mode=2775 /data
COPY --from=build /opt/shopflow /opt/shopflow
ENV PATH="/opt/shopflow/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SHOPFLOW_DATA_DIR=/data \
    SHOPFLOW_WEB_BIND=0.0.0.0

# By number, so that Kubernetes' runAsNonRoot can tell that it isn't root.
USER 10001
WORKDIR /home/shopflow
EXPOSE 6066
# Live, not ready: while a server is away a worker waits, and to replace it would help nobody.
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=3 CMD ["python", "-c", "import http.client, os; web = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('SHOPFLOW_WEB_PORT', 6066)), timeout=4); web.request('GET', '/health/live'); raise SystemExit(web.getresponse().status != 200)"]
# As process 1 it passes signals on, also in the first seconds, and reaps.
ENTRYPOINT ["dumb-init", "--", "shopflow"]
CMD ["worker"]
