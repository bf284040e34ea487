"use strict";
// The service's own reading of /openapi.json: nothing is loaded from another host.

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function kind(schema) {
  if (!schema) return "";
  const of = schema.anyOf ? schema.anyOf.map(kind).join(" or ") : schema.type || "";
  const range = [schema.minimum, schema.maximum].every((x) => x !== undefined) ? ` ${schema.minimum}–${schema.maximum}` : "";
  return of + range + (schema.default !== undefined ? `, default ${schema.default}` : "");
}

function rows(list) {
  const table = make("table");
  for (const [name, of, text] of list) {
    const row = make("tr");
    const cell = make("td");
    cell.append(make("code", "", name));
    row.append(cell, make("td", "", of), make("td", "", text || ""));
    table.append(row);
  }
  return table;
}

function operation(path, verb, said) {
  const article = make("article");
  const head = make("h2");
  head.append(make("span", "verb", verb.toUpperCase()), make("code", "", ` ${path}`));
  article.append(head, make("p", "", (said.description || said.summary).replaceAll("`", "")));
  const parameters = (said.parameters || []).map((p) => [p.name, kind(p.schema), p.description]);
  const sent = said.requestBody && said.requestBody.content["application/json"].schema;
  const body = sent && (sent.oneOf ? sent.oneOf[0] : sent);
  if (body) {
    for (const [name, field] of Object.entries(body.properties)) {
      parameters.push([name, kind(field) + ((body.required || []).includes(name) ? "" : ", optional"), field.description]);
    }
  }
  if (parameters.length) article.append(rows(parameters));
  const url = `${location.origin}${path.replace(/\{(\w+)\}/g, "1")}`;
  const event = ` -d '{"user_id": "1", "item_id": "1", "event": "rating", "value": 5}'`;
  const sample = body ? (path.endsWith("/search") ? ` -F text="words" -F image=@picture.jpg` : event) : "";
  article.append(make("pre", "", `curl ${url}${sample}`));
  return article;
}

fetch("/openapi.json").then((response) => response.json()).then((api) => {
  document.getElementById("about").textContent = api.info.description;
  const found = Object.entries(api.paths).flatMap(([path, verbs]) =>
    Object.entries(verbs).map(([verb, said]) => operation(path, verb, said)));
  document.getElementById("paths").replaceChildren(...found);
});
