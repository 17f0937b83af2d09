"""What stands between the network and the dialects: keys, rates, limits, logs and metrics, as pure ASGI middlewares.

`twinspire_server.gateway.app` puts them in order.
"""
