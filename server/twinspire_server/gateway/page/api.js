// Requests to the gateway. A key, where one is needed, is kept by this tab only.

const KEPT = "twinspire.key";
let key = sessionStorage.getItem(KEPT);

export const hasKey = () => key !== null;

export function setKey(value) {
  key = value || null;
  if (key) sessionStorage.setItem(KEPT, key);
  else sessionStorage.removeItem(KEPT);
}

/** A request that failed: `status` is 0 where no answer came, `code` is the gateway's word for it, `retryAfter` is in seconds. */
export class RequestError extends Error {
  constructor(status, message, { code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

async function request(path, { body, signal, accept = "application/json" } = {}) {
  const headers = { Accept: accept };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      signal,
      body: body && JSON.stringify(body),
      credentials: "same-origin",
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new RequestError(0, error.message);
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let message = `${response.status} ${response.statusText}`;
  let code = null;
  try {
    const document = await response.json();
    code = document.error?.code ?? null;
    const told = document.error?.message ?? document.message ?? document.detail ?? document.error;
    if (typeof told === "string") message = told;
  } catch {
    // Not JSON, as of a proxy: the status says it.
  }
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  return new RequestError(response.status, message, { code, retryAfter: Number.isFinite(seconds) ? seconds : null });
}

const json = async (path, options) => (await request(path, options)).json();

export const search = (body, signal) => json("v1/search", { body, signal });
export const info = () => json("v1/info");
export const item = (id, signal) => json(`v1/items/${encodeURIComponent(id)}`, { signal });
export const status = (signal) => json("v1/status", { signal });

const imagePath = (id, size) => `v1/items/${encodeURIComponent(id)}/image?size=${size}`;

/** Let an `img` show an item's picture, at most `size` pixels a side. Resolves when it does, rejects when it cannot. */
export async function loadImage(image, id, size) {
  let address = imagePath(id, size);
  // An img sends no headers.
  if (key) address = URL.createObjectURL(await (await request(address, { accept: "image/*" })).blob());
  try {
    image.src = address;
    await image.decode();
  } finally {
    if (key) URL.revokeObjectURL(address);
  }
}

/** Call `onEvent(name, data)` for each server-sent event until the signal aborts. EventSource sends no key. */
export async function events(path, onEvent, signal) {
  const response = await request(path, { signal, accept: "text/event-stream" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = block.split(/\r?\n/).map((line) => line.match(/^(\w+): ?(.*)$/)).filter(Boolean);
      const data = fields.filter(([, name]) => name === "data").map(([, , text]) => text).join("\n");
      if (data) onEvent(fields.find(([, name]) => name === "event")?.[2] ?? "message", JSON.parse(data));
    }
  }
}
