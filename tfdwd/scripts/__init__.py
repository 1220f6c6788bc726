"""Console commands: absl flags, one library call, files."""
