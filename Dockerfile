# One image for all of Midwatch: monitor, agent, operator, content proxy, and the sessions themselves.
#
#   docker build --tag midwatch:0.1.0 .
#
# The base is pinned by its digest, as a tag moves; .github/dependabot.yml raises it. Everything from the package index is pinned by hash in
# requirements-image.lock; it is what the tests ran with.
ARG BASE=python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv --without-pip /opt/midwatch
COPY requirements-image.lock ./
RUN pip --python /opt/midwatch/bin/python install --require-hashes --only-binary :all: -r requirements-image.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
# What only builds does not stay; `pip check` says whether too much went.
RUN pip --python /opt/midwatch/bin/python install --no-deps --no-build-isolation . \
    && pip --python /opt/midwatch/bin/python uninstall --yes \
        editables hatchling packaging pathspec pluggy tomlkit trove-classifiers \
    && pip --python /opt/midwatch/bin/python check \
    && /opt/midwatch/bin/midwatch --version

FROM ${BASE}
LABEL org.opencontainers.image.title="Midwatch" \
      org.opencontainers.image.description="An on-call engineer that a team runs itself" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
# "bubblewrap socat" gives Bash a sandbox within the container. Where a pod may not make user namespaces, as by
# default, the sandbox would be taken for there and every command would fail: docs/kubernetes.md.
ARG SANDBOX=""
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git git-lfs openssh-client tini ${SANDBOX} \
    && rm -rf /var/lib/apt/lists/* \
    # A program that cannot be read runs closed: tini has the pod's keys in its environment, as process 1.
    && chmod 0711 /usr/bin/tini \
    && groupadd --gid 10001 midwatch \
    && useradd --uid 10001 --gid 10001 --create-home --home-dir /home/midwatch --shell /usr/sbin/nologin midwatch
COPY --from=build /opt/midwatch /opt/midwatch
# The root file system may be read-only: only /tmp and the volumes are written to.
ENV PATH=/opt/midwatch/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /home/midwatch
# A session leaves processes behind (what git, Bash and MCP servers started): tini reaps them.
ENTRYPOINT ["tini", "--", "midwatch"]
CMD ["--help"]
# Kubernetes does not look at it, and has the chart's probes. It asks whatever daemon runs here; the monitor and the
# agents answer if `metrics.port` is set.
HEALTHCHECK --interval=60s --timeout=10s --start-period=30s --retries=3 CMD ["midwatch", "health"]
