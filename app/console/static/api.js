// Swagger UI with the visitor's session: requests carry the console's header, by which the gateway takes the cookie.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: -1,
  requestInterceptor: (request) => {
    request.headers["X-Console"] = "1";
    return request;
  },
});
