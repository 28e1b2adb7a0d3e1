"""The nouns and their rules. No input or output: everything here can be tested with data alone."""
