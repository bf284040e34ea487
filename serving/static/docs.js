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

// The model of a schema: of a choice of several, the first.
function model(schema, api) {
  const first = schema.anyOf ? schema.anyOf[0] : schema;
  return first.$ref ? api.components.schemas[first.$ref.split("/").pop()] : first;
}

function operation(path, verb, spec, api) {
  const article = make("article");
  const head = make("h2");
  head.append(make("span", "verb", verb.toUpperCase()), make("code", "", ` ${path}`));
  article.append(head, make("p", "", (spec.description || spec.summary).replaceAll("`", "")));
  const parameters = (spec.parameters || []).map((p) => [p.name, kind(p.schema), p.description]);
  const content = spec.requestBody && Object.values(spec.requestBody.content)[0];
  const body = content && model(content.schema, api);
  if (body) {
    for (const [name, field] of Object.entries(body.properties || {})) {
      parameters.push([name, kind(field) + ((body.required || []).includes(name) ? "" : ", optional"), field.description]);
    }
  }
  if (parameters.length) article.append(rows(parameters));
  const given = Object.fromEntries((spec.parameters || []).map((p) => [p.name, p.example]));
  const url = `${location.origin}${path.replace(/\{(\w+)\}/g, (_, name) => given[name])}`;
  const send = verb === "get" ? "" : `-X ${verb.toUpperCase()} `;
  const example = content && (typeof content.example === "string" ? content.example : JSON.stringify(content.example));
  const sample = content ? ` \\\n     -H 'Content-Type: ${Object.keys(spec.requestBody.content)[0]}' --data-binary '${example}'` : "";
  article.append(make("pre", "", `curl ${send}'${url}'${sample}`));
  return article;
}

fetch("/openapi.json").then((response) => response.json()).then((api) => {
  document.getElementById("about").textContent = api.info.description;
  const operations = Object.entries(api.paths).flatMap(([path, verbs]) =>
    Object.entries(verbs).map(([verb, spec]) => operation(path, verb, spec, api)));
  const problems = make("article");
  problems.append(make("h2", "", "Errors"));
  const table = rows(Object.entries(api.components.schemas.Problem.properties.code["x-titles"]).map(([code, title]) => [code, title]));
  for (const row of table.rows) row.id = row.cells[0].textContent;
  problems.append(table);
  document.getElementById("paths").replaceChildren(...operations, problems);
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
});
