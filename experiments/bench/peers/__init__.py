"""Other libraries, measured beside ours in environments of their own."""
