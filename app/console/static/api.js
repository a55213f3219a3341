// Swagger UI with the visitor's session: requests carry the console's header, by which the gateway takes the cookie.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: -1,
  requestInterceptor: (request) => {
    request.headers["X-Console"] = "1";
    const tenant = document.body.dataset.actsIn;
    if (tenant && !/[?&]tenant=/.test(request.url)) request.url += `${request.url.includes("?") ? "&" : "?"}tenant=${tenant}`;
    return request;
  },
});
