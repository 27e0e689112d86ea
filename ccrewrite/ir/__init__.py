"""What is known of a run: geometries, convolution calls, sites."""
