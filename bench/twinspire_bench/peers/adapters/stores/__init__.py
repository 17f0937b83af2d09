"""Embedded stores and indexes that search vectors, each used as its documentation says."""
