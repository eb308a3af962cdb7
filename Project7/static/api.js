// The server's API. Every error is an Error whose message is a sentence for a person.

function broken(error) {
  throw error.name === "AbortError" ? error : new Error("The server does not answer; is it still running?");
}

async function send(path, options = {}) {
  const response = await fetch(path, options).catch(broken);
  if (!response.ok) throw new Error(sentence((await response.json().catch(() => ({}))).error ?? response.statusText));
  return response;
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1);
const asJson = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
const ofPhoto = (id, what) => `api/photos/${encodeURIComponent(id)}/${what}`;

export const listModels = async () => (await send("api/models")).json();

export async function openPhoto(file) {
  const form = new FormData();
  form.append("image", file, "photo");
  return (await send("api/photos", { method: "POST", body: form })).json();
}

export const openSample = async () => (await send("api/photos/sample", { method: "POST" })).json();
export const closePhoto = (id) => send(`api/photos/${encodeURIComponent(id)}`, { method: "DELETE" }).catch(() => {});
export const gray = async (id, levels, side) => (await send(ofPhoto(id, `gray?levels=${levels}&side=${side}`))).blob();
export const suggest = async (id, asked, signal) => (await send(ofPhoto(id, "suggest"), { ...asJson(asked), signal })).json();
export const ambiguity = async (id, asked, signal) => (await send(ofPhoto(id, "ambiguity"), { ...asJson(asked), signal })).json();
export async function reference(id, file, model) {
  const form = new FormData();
  form.append("image", file, "photo");
  form.append("model", model);
  return (await send(ofPhoto(id, "reference"), { method: "POST", body: form })).json();
}

// The hints of the photo `source` (asked.hints) as hints of another one.
export const carried = async (id, source, asked) => (await send(ofPhoto(id, "carried"), asJson({ ...asked, source }))).json();
export const exported = async (id, asked) => (await send(ofPhoto(id, "export"), asJson(asked))).blob();

// Calls hear(kind, value) for every event of the answers, until they are done; throws what failed.
export async function answers(id, asked, signal, hear) {
  const response = await send(ofPhoto(id, "answers"), { ...asJson(asked), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch(broken);
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const [, kind, data] = event.match(/^event: (\w+)\ndata: (.*)$/s);
      const parsed = JSON.parse(data);
      if (kind === "failed") throw new Error(sentence(parsed.error));
      hear(kind, parsed);
    }
  }
}
