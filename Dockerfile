# twinspire for a CPU: the models' server (`serve`, with the Triton of the wheel nvidia-pytriton), the HTTP gateway, and
# the other commands. One image; the arguments after its name choose the command, one process a container.
#
#   docker build -t twinspire .
#   docker run --rm --read-only --tmpfs /tmp:exec -p 127.0.0.1:8080:8080 \
#       twinspire gateway --bundle /opt/twinspire/sample --host 0.0.0.0 --insecure
#
# The Triton wheel has no Python 3.13.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ARG EXTRAS=cpu,server,gateway,heif
WORKDIR /src
# What changes rarely has a layer of its own: all packages but twinspire, in the versions of constraints.txt.
COPY pyproject.toml constraints.txt ./
RUN python -c "import os, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*project['dependencies'], *(one for extra in os.environ['EXTRAS'].split(',') for one in project['optional-dependencies'][extra]), sep='\n')" > requirements.txt \
    && python -m venv /opt/twinspire \
    && /opt/twinspire/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary :all: \
        --constraint constraints.txt --requirement requirements.txt hatchling
COPY README.md LICENSE ./
COPY client client
COPY bench bench
COPY export export
COPY server server
RUN /opt/twinspire/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . \
    && /opt/twinspire/bin/pip uninstall --yes --quiet hatchling pip \
    && ln -s "$(/opt/twinspire/bin/python -c 'import twinspire; print(twinspire.sample_bundle())')" /opt/twinspire/sample

FROM python:${PYTHON_VERSION}-slim-bookworm
# tini is the first process: it passes signals on and collects ended processes, which neither Python nor Triton does.
# Its version is that of the base image's Debian.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 twinspire \
    && useradd --uid 10001 --gid twinspire --home-dir /var/lib/twinspire --create-home --shell /usr/sbin/nologin twinspire \
    && install --directory --owner=twinspire --group=twinspire /models /index /uploads
COPY --from=build /opt/twinspire /opt/twinspire
COPY deploy/docker/healthcheck.py /usr/local/lib/twinspire/healthcheck.py
# The root may be read-only, /tmp may not.
ENV PATH=/opt/twinspire/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
# By number: Kubernetes cannot tell whether a name is root's.
USER 10001:10001
WORKDIR /var/lib/twinspire
# gRPC and status of `serve`; HTTP and metrics of `gateway`.
EXPOSE 8001 8003 8080 9109
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-I", "/usr/local/lib/twinspire/healthcheck.py"]
ENTRYPOINT ["tini", "--", "twinspire"]
CMD ["--help"]
