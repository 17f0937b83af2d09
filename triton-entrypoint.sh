#!/bin/sh
# Start tritonserver with the flags of `twinspire serve`, and the arguments after the image's name in `docker run`.
# Each start generates a random key for the restricted parts of the API (SECURITY.md), which is given to nobody.
# gRPC and metrics listen on all addresses of the container; its host decides who can reach them. HTTP listens within
# the container, for the health check.
set -eu
key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
exec tritonserver \
    --model-repository=/models \
    --model-control-mode=none \
    --exit-on-error=true \
    --strict-readiness=true \
    --disable-auto-complete-config \
    --exit-timeout-secs=10 \
    --http-address=127.0.0.1 \
    --http-port=8000 \
    --grpc-address=0.0.0.0 \
    --grpc-port=8001 \
    --metrics-address=0.0.0.0 \
    --metrics-port=8002 \
    "--http-restricted-api=shared-memory,logging,trace,model-repository,inference,statistics,model-config:twinspire-admin=$key" \
    "--grpc-restricted-protocol=shared-memory,logging,trace,model-repository:twinspire-admin=$key" \
    "$@"
