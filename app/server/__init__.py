"""Application server: settings in, one wired FastAPI application out."""
