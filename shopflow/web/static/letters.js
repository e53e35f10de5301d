// Sends retries with the write token, which stays in this tab.
"use strict";

const field = document.getElementById("token");
const said = document.getElementById("said");
field.value = sessionStorage.getItem("shopflow.write_token") ?? "";
field.form.addEventListener("submit", (event) => event.preventDefault());

async function retry(form) {
  sessionStorage.setItem("shopflow.write_token", field.value);
  const button = form.querySelector("button");
  button.disabled = true;
  said.hidden = true;
  try {
    const headers = { Authorization: `Bearer ${field.value}` };
    const answer = await fetch(form.action, { method: "POST", headers, body: new URLSearchParams() });
    if (answer.ok) {
      location.assign(answer.url); // the worker answers with the page that shows what became of it
      return;
    }
    said.textContent = `Not retried: ${(await answer.json()).error}.`;
  } catch {
    said.textContent = `The worker at ${location.host} does not answer. It is not known whether it was retried: reload this page.`;
  }
  said.hidden = false;
  button.disabled = false;
}

for (const form of document.querySelectorAll("form[data-retry]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    retry(form);
  });
}
