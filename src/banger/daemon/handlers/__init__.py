"""HTTP and WebSocket handlers: thin, one module a noun. They translate; the engine decides."""
