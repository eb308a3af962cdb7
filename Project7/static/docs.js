// Lays openapi.json out as a page: no library, nothing from another host.

const spec = await (await fetch("openapi.json")).json();
const resolve = (schema) => (schema?.$ref ? spec.components.schemas[schema.$ref.split("/").pop()] : schema);
const element = (kind, text, ...children) => {
  const made = document.createElement(kind);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};

function kindOf(schema) {
  const { type, anyOf, items, enum: names, $ref } = schema;
  if (names) return names.join(" | ");
  if (anyOf) return anyOf.map(kindOf).filter((kind) => kind !== "null").join(" or ");
  if ($ref) return $ref.split("/").pop();
  return items ? `list of ${kindOf(items)}` : (schema.format ?? type ?? "");
}

for (const [path, methods] of Object.entries(spec.paths)) {
  for (const [method, about] of Object.entries(methods)) {
    const rows = (about.parameters ?? []).map((p) => [p.name, kindOf(p.schema), `in the ${p.in}`]);
    for (const { schema } of Object.values(about.requestBody?.content ?? {})) {
      const { properties, required = [] } = resolve(schema);
      for (const [name, field] of Object.entries(properties)) {
        const given = required.includes(name) ? "required" : `default ${JSON.stringify(field.default ?? null)}`;
        rows.push([name, kindOf(field), [field.description, given].filter(Boolean).join("; ")]);
      }
    }
    const table = element("table", "", ...rows.map((row) => element("tr", "", ...row.map((text) => element("td", text)))));
    document.getElementById("paths").append(element("h2", `${method.toUpperCase()} ${path}`), element("p", about.description ?? ""), table);
  }
}
