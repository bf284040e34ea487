"""What the pages are made of: their files, and what they may offer."""
