// Pictures of the user's own that are searched with. They stay in this tab: the address only names them.

const SIDE = 768; // pixels; a model looks at fewer
const KEPT = "twinspire.picture.";
const MOST = 12;
const LARGEST = 8e6; // bytes of a file that the browser cannot draw, and that is sent as it is

const known = new Map();

/** Keep a file, smaller if need be, and return its name in addresses. Rejects what is no picture. */
export async function keep(file) {
  const address = await drawn(file).catch(() => original(file));
  const digest = await crypto.subtle?.digest("SHA-256", new TextEncoder().encode(address));
  const name = digest ? hex(digest).slice(0, 16) : String(Date.now());
  known.set(name, address);
  store(name, address);
  return name;
}

/** Return the data URI of a picture, undefined where this tab has it no longer. */
export function address(name) {
  return known.get(name) ?? sessionStorage.getItem(KEPT + name) ?? undefined;
}

async function drawn(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // what is transparent, as the server does
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

function original(file) {
  if (!file.type.startsWith("image/") || file.type.includes("svg") || file.size > LARGEST) throw new Error(file.name);
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function store(name, text) {
  const names = Object.keys(sessionStorage).filter((key) => key.startsWith(KEPT));
  for (const old of names.slice(0, Math.max(0, names.length - MOST + 1))) sessionStorage.removeItem(old);
  try {
    sessionStorage.setItem(KEPT + name, text);
  } catch {
    // The tab's storage is full: the picture is known until the page is loaded again.
  }
}

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
