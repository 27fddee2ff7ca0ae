"""I/O out: the catalogue of metrics, the Prometheus collector over it, and the web server."""
