"use strict";
// Renders /openapi.json. Nothing is loaded from another host.

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function kind(schema) {
  if (!schema) return "";
  const type = schema.anyOf ? schema.anyOf.map(kind).join(" or ") : schema.type || "";
  const range = [schema.minimum, schema.maximum].every((x) => x !== undefined) ? ` ${schema.minimum}–${schema.maximum}` : "";
  return type + range + (schema.default !== undefined ? `, default ${schema.default}` : "");
}

function rows(list) {
  const table = make("table");
  for (const [name, type, text] of list) {
    const row = make("tr");
    const cell = make("td");
    cell.append(make("code", "", name));
    row.append(cell, make("td", "", type), make("td", "", text || ""));
    table.append(row);
  }
  return table;
}

function operation(path, verb, spec) {
  const article = make("article");
  const head = make("h2");
  head.append(make("span", "verb", verb.toUpperCase()), make("code", "", ` ${path}`));
  article.append(head, make("p", "", (spec.description || spec.summary).replaceAll("`", "")));
  const parameters = (spec.parameters || []).map((p) => [p.name, kind(p.schema), p.description]);
  const schema = spec.requestBody && spec.requestBody.content["application/json"].schema;
  const body = schema && (schema.oneOf ? schema.oneOf[0] : schema);
  if (body) {
    for (const [name, field] of Object.entries(body.properties)) {
      parameters.push([name, kind(field) + ((body.required || []).includes(name) ? "" : ", optional"), field.description]);
    }
  }
  if (parameters.length) article.append(rows(parameters));
  const url = `${location.origin}${path.replace(/\{(\w+)\}/g, "1")}`;
  const event = ` -H 'Content-Type: application/json' -d '{"user_id": "1", "item_id": "1", "event": "rating", "value": 5}'`;
  const sample = body ? (path.endsWith("/search") ? ` -F text="words" -F image=@picture.jpg` : event) : "";
  article.append(make("pre", "", `curl ${url}${sample}`));
  return article;
}

fetch("/openapi.json").then((response) => response.json()).then((api) => {
  document.getElementById("about").textContent = api.info.description;
  const operations = Object.entries(api.paths).flatMap(([path, verbs]) =>
    Object.entries(verbs).map(([verb, spec]) => operation(path, verb, spec)));
  document.getElementById("paths").replaceChildren(...operations);
});
