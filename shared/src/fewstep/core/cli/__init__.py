"""What the verbs of the packages share: options, files, progress, the doctor."""
