"""Models that judge replies: questions, a local checkpoint or a server that answers them, and the answers so far."""
