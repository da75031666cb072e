"""fetchers."""
