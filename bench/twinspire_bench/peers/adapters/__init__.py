"""What runs in the environments of the peers: one adapter a peer, and the script that serves it.

Nothing here imports twinspire: an environment has what its peer requires, and NumPy. Imports are relative, since the
script loads this folder as a package of its own.
"""
