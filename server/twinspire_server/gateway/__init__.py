"""The HTTP gateway: embeddings in the dialects of existing clients, search, and a page, in front of Triton.

`twinspire_server.gateway.app.create_app` makes the application. This module imports nothing: the commands of the
package are loaded where the extra `gateway` is missing.
"""
