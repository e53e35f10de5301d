// A form for each operation of /openapi.json. Everything is put into the page as text, never as HTML.
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
    element,
  );
}

async function show() {
  const place = document.getElementById("operations");
  try {
    const { paths } = await (await fetch("/openapi.json")).json();
    const forms = Object.entries(paths).flatMap(([path, operations]) =>
      Object.entries(operations).map(([method, operation]) => form(path, method, operation)),
    );
    place.replaceChildren(...forms);
  } catch (error) {
    place.textContent = `The description can't be loaded: ${error}`;
  }
}

show();
