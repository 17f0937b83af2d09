"""`twinspire bench latency`: latency and throughput of towers, in this process or on a server."""
