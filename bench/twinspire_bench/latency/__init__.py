"""`twinspire bench latency`: how fast towers answer, in this process or on a server."""
