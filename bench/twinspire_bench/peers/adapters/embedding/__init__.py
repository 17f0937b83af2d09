"""Libraries that encode images and texts, each used as its documentation says."""
