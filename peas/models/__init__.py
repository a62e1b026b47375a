"""Models: tensors in, tensors out. They know nothing of files, Lightning or mask policy."""
