// Shows the operations and schemas of /openapi.json, with a form for each. All is set as text, never as HTML.
"use strict";

function made(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function input(parameter) {
  const field = made("input", { value: parameter.example ?? "", required: parameter.required === true });
  const more = parameter.description ? `: ${parameter.description}` : "";
  return { parameter, field, label: made("label", {}, `${parameter.name}${more} `, field) };
}

function addressOf(path, inputs) {
  const query = new URLSearchParams();
  let address = path;
  for (const { parameter, field } of inputs) {
    if (parameter.in === "path") {
      address = address.replace(`{${parameter.name}}`, encodeURIComponent(field.value));
    } else if (field.value !== "") {
      query.set(parameter.name, field.value);
    }
  }
  return query.size ? `${address}?${query}` : address;
}

async function send(method, address, body) {
  const headers = {};
  const token = document.getElementById("token").value;
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(address, { method, headers, body });
  const text = await response.text();
  let shown = text;
  try {
    shown = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // not JSON: as it came
  }
  return `${response.status} ${response.statusText}\n${shown}`;
}

function form(path, method, operation) {
  const inputs = (operation.parameters ?? []).map(input);
  const content = operation.requestBody?.content["application/json"];
  const body = content && made("textarea", { value: JSON.stringify(content.example, null, 2), spellcheck: false });
  const result = made("pre", { role: "status" });
  const element = made("form", {}, ...inputs.map(({ label }) => label));
  if (body) element.append(made("label", {}, "Body (JSON) ", body));
  element.append(made("button", { type: "submit" }, "Send"), result);
  element.addEventListener("submit", async (event) => {
    event.preventDefault();
    result.textContent = "...";
    try {
      result.textContent = await send(method.toUpperCase(), addressOf(path, inputs), body?.value);
    } catch (error) {
      result.textContent = String(error);
    }
  });
  return made(
    "details",
    {},
    made("summary", {}, made("strong", {}, method.toUpperCase()), " ", made("code", {}, path), ` ${operation.summary}`),
    made("p", {}, operation.description ?? ""),
    ...(content ? [made("p", {}, "Body: ", ...typeOf(content.schema))] : []),
    element,
    made("h3", {}, "Answers"),
    ...Object.entries(operation.responses).flatMap(([status, response]) => answer(status, response)),
  );
}

let components = {};

function nameOf(reference) {
  return reference.split("/").pop();
}

function answer(status, response) {
  const found = response.$ref ? components.responses[nameOf(response.$ref)] : response;
  const content = found.content?.["application/json"];
  const line = made("p", {}, made("strong", {}, status), ` ${found.description} `, ...typeOf(content?.schema ?? {}));
  return content?.example ? [line, made("pre", {}, JSON.stringify(content.example, null, 2))] : [line];
}

// The type of a schema, with links to the schemas that it names.
function typeOf(schema) {
  if (schema.$ref) {
    const name = nameOf(schema.$ref);
    return [made("a", { href: `#${name}` }, name)];
  }
  const choices = schema.oneOf ?? schema.anyOf;
  if (choices) return choices.flatMap((one, at) => (at ? [" or ", ...typeOf(one)] : typeOf(one)));
  if (schema.enum) return [schema.enum.map((one) => JSON.stringify(one)).join(" | ")];
  if (schema.type === "array" && schema.items) return ["array of ", ...typeOf(schema.items)];
  return [[schema.type ?? []].flat().join(" or "), schema.format ? ` (${schema.format})` : ""];
}

const LIMITS = ["minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern", "default"];

function limitsOf(schema) {
  const choices = [schema, ...(schema.anyOf ?? [])];
  const found = choices.flatMap((one) => LIMITS.filter((name) => name in one).map((name) => `${name} ${one[name]}`));
  return found.join(", ");
}

function table(name, schema) {
  const rows = Object.entries(schema.properties ?? { "": schema }).map(([field, one]) =>
    made(
      "tr",
      {},
      made("th", { scope: "row" }, field, schema.required?.includes(field) ? " *" : ""),
      made("td", {}, ...typeOf(one)),
      made("td", {}, limitsOf(one)),
      made("td", {}, one.description ?? ""),
    ),
  );
  const heads = ["Field (* required)", "Type", "Limits", "Meaning"].map((text) => made("th", { scope: "col" }, text));
  return made(
    "section",
    { id: name },
    made("h3", {}, name),
    made("p", {}, schema.description ?? ""),
    made("table", {}, made("thead", {}, made("tr", {}, ...heads)), made("tbody", {}, ...rows)),
  );
}

async function show() {
  const operations = document.getElementById("operations");
  try {
    const description = await (await fetch("/openapi.json")).json();
    components = description.components;
    const forms = Object.entries(description.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => form(path, method, operation)),
    );
    operations.replaceChildren(...forms);
    const schemas = Object.entries(components.schemas).map(([name, schema]) => table(name, schema));
    document.getElementById("schemas").replaceChildren(...schemas);
  } catch (error) {
    operations.textContent = `The description can't be loaded: ${error}`;
  }
}

show();
