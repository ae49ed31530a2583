"""What a sweep's YAML may say."""
