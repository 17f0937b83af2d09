#!/bin/sh
# Start tritonserver with the flags of `twinspire serve`; what follows the image's name in `docker run` is added.
# Each start draws a key of its own for what is closed to others (SECURITY.md) and tells it to nobody.
# gRPC and metrics listen on all the container's addresses, and its host decides who reaches them. HTTP does not: it
# answers the health check.
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
