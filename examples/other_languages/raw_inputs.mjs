// Encode images and texts on a server from Node.js, without twinspire.
//
// node raw_inputs.mjs PROTO ADDRESS MODEL IMAGE... -- TEXT...
//
// PROTO is Triton's grpc_service.proto with model_config.proto beside it. Prints the cosine of each image and each text.

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [proto, address, model, ...rest] = process.argv.slice(2);
const end = rest.indexOf("--");
const [images, texts] = [rest.slice(0, end), rest.slice(end + 1)];

const { inference } = grpc.loadPackageDefinition(loadSync(proto, { keepCase: true }));
const client = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure());

// Return the embeddings of files or texts: a Float32Array of length 1 for each.
function encode(model_name, name, items) {
  const request = {
    model_name,
    inputs: [{ name, datatype: "BYTES", shape: [items.length, 1], contents: { bytes_contents: items } }],
  };
  return new Promise((resolve, reject) => {
    client.ModelInfer(request, { deadline: Date.now() + 30_000 }, (error, response) => {
      if (error) return reject(error);
      const bytes = response.raw_output_contents[0];
      const values = new Float32Array(new Uint8Array(bytes).buffer); // a copy, which is aligned
      const dim = values.length / items.length;
      resolve(items.map((_, row) => values.subarray(row * dim, (row + 1) * dim)));
    });
  });
}

const dot = (one, other) => one.reduce((sum, value, index) => sum + value * other[index], 0);

try {
  const rows = await encode(`${model}_image_bytes`, "image_bytes", images.map((path) => readFileSync(path)));
  const columns = await encode(`${model}_text_raw`, "text", texts.map((text) => Buffer.from(text, "utf8")));
  rows.forEach((row, place) => {
    console.log(basename(images[place]), ...columns.map((column) => dot(row, column).toFixed(4)));
  });
} catch (error) {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
} finally {
  client.close();
}
