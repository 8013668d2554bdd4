"""Whose memory is updated, and what is known of it: keyed by the parameters themselves."""
