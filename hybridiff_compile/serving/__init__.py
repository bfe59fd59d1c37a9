"""`hybridiff serve`: an HTTP server that makes pictures as OpenAI's images API asks for them."""
