"""What the description of the API (OpenAPI) says besides the routes."""
